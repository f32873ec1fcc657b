"""Which mvm this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "mvm-fleet"


def own_version() -> str:
    """Version of the installed package; `unknown` for sources that were never installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
