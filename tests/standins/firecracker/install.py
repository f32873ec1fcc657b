"""Puts the stand-ins where a Firecracker release would be: `<directory>/firecracker/<version>/{firecracker,jailer}`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.standins.firecracker.settings import Settings

CHECKOUT = Path(__file__).resolve().parents[3]
PROGRAM = """#!{python}
import sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("{title} v{version}\\n"))
sys.path[0] = {checkout!r}
from pathlib import Path
from tests.standins.firecracker import {module}
from tests.standins.firecracker.settings import Settings
sys.exit({module}.main(Settings(control=Path({control!r}), version={version!r}), sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """Stand-ins of one version."""

    firecracker: Path
    jailer: Path
    settings: Settings


def install(programs: Path, control: Path, version: str = "1.16.1") -> Installed:
    """Write both programs below `programs`; what they do is written down below `control`."""
    control.mkdir(parents=True, exist_ok=True)
    directory = programs / "firecracker" / version
    directory.mkdir(parents=True, exist_ok=True)
    for module in ("firecracker", "jailer"):
        path = directory / module
        path.write_text(
            PROGRAM.format(
                python=sys.executable,
                checkout=str(CHECKOUT),
                module=module,
                title=module.title(),
                control=str(control),
                version=version,
            )
        )
        path.chmod(0o755)
    return Installed(
        firecracker=directory / "firecracker",
        jailer=directory / "jailer",
        settings=Settings(control=control, version=version),
    )
