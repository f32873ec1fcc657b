"""Write `nix/generated/*.json`, which the Nix modules read, from what mvm itself goes by (`make render-nix`).

With `--check` nothing is written: the files that are old are named, and the status is 1 when there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mvm.image import units

GENERATED = Path(__file__).resolve().parents[1] / "nix/generated"


def old(directory: Path) -> dict[Path, str]:
    """The files of a directory that are not as they should be, with the text that they should have."""
    wanted = {directory / name: text for name, text in units.files().items()}
    return {path: text for path, text in wanted.items() if not path.is_file() or path.read_text() != text}


def left_over(directory: Path) -> list[Path]:
    """Files that nothing generates any more."""
    return sorted(path for path in directory.glob("*") if path.name not in units.files())


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit status."""
    found = old(GENERATED)
    surplus = left_over(GENERATED)
    if arguments == ["--check"]:
        for path in (*found, *surplus):
            print(f"{path.name} is old: make render-nix", file=sys.stderr)
        return 1 if found or surplus else 0
    GENERATED.mkdir(parents=True, exist_ok=True)
    for path, text in found.items():
        path.write_text(text)
        print(f"wrote {path.name}")
    for path in surplus:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
