"""The guest's end of the channel as a service: joins what carries it to the Unix sockets of `mvm.guest.channel`."""

from __future__ import annotations

from collections.abc import Mapping


async def serve(environment: Mapping[str, str]) -> None:
    """Run until SIGTERM or SIGINT. Raises `OSError` or `ValueError` when it cannot."""
    raise OSError("nothing here carries a channel to the host")
