"""mvm's own flake: the modules that an application flake, such as nix-openclaw, is put together with.

It lies in `nix/` beside the sources that it packs into guests, so both are handed to nix, as one archive: of a plain
directory nix 2.8 takes only what is beside `flake.nix`, and a git repository is not there in every installation.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mvm
from mvm.image import trees
from mvm.model.errors import Unavailable

VARIABLE = "MVM_NIX_FLAKE"
"""Names another flake to take mvm's own modules from."""
INPUT = "application"
"""The input of mvm's flake that stands for the application flake."""
DIRECTORY = "nix"
FLAKE = "flake.nix"

_PACKED = (DIRECTORY, "src", "deploy", "requirements", "pyproject.toml", "LICENSE", "README.md")
"""What may be read by the flake; of all else in a checkout nothing is."""
_UNWANTED = ("__pycache__", ".mypy_cache", ".ruff_cache", "node_modules", "result")
_DIGEST_LENGTH = 20


def checkout() -> Path:
    """The directory that mvm was started from, when the flake is in it."""
    return Path(mvm.__path__[0]).parents[1]


def own_flake(cache: Path, root: Path | None = None) -> str:
    """mvm's own flake as nix takes it: what the environment names, else an archive in `cache` of what is in `root`."""
    if named := os.environ.get(VARIABLE):
        return named
    root = root or checkout()
    if not (root / DIRECTORY / FLAKE).is_file():
        raise Unavailable(
            f"this installation of mvm has no {DIRECTORY}/{FLAKE}, which images are made with",
            hint=f"run mvm from its repository, or let {VARIABLE} name the flake in it: github:OWNER/mvm?dir=nix",
        )
    content = _archive(root)
    path = cache / f"mvm-{hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]}.tar"
    if path.is_file():
        os.utime(path)  # needed now
    else:
        _write(path, content)
    return f"file://{path}?dir={DIRECTORY}"


def _archive(root: Path) -> bytes:
    """The same files give the same bytes: the name of the archive is a digest of them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in _PACKED:
            for path in _files(root / name):
                entry = tarfile.TarInfo(f"mvm/{path.relative_to(root).as_posix()}")
                content = path.read_bytes()
                entry.size = len(content)
                entry.mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        for each in sorted(path.iterdir()):
            if each.name not in _UNWANTED and not each.is_symlink():
                yield from _files(each)


def _write(path: Path, content: bytes) -> None:
    trees.make_directory(path.parent)
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
