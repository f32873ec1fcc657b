"""The guest's program: `mvm.guest` and `mvm.wire` as one zipapp that needs nothing but Python.

The same sources give the same bytes, whenever and wherever it is built, so that its digest can name an image revision.
Beside each source lies its compiled form for the building Python (a guest with another one compiles for itself): a
wake waits for this program to come up.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import zipfile
from pathlib import Path

import mvm.guest
import mvm.wire
from mvm.model.errors import MvmError

_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = """import sys

from mvm.guest.__main__ import main

sys.exit(main(sys.argv[1:]))
"""
_UNCHECKED_HASH = (0b01).to_bytes(4, "little")
_PLAIN_MARSHAL = 2
"""Version without references and interning, whose bytes do not depend on what else the building process did."""


def build_zipapp(target: Path) -> str:
    """Write the zipapp, whole or not at all, unless it is there already; returns its digest (`sha256:` and hex)."""
    content = _archive(_sources())
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    try:
        if target.is_file() and target.read_bytes() == content:
            return digest
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            unfinished.write_bytes(content)
            unfinished.chmod(0o644)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise MvmError(
            f"the guest's program cannot be written to '{target}': {error.strerror or error}",
            hint="is the file system full or read-only?",
        ) from error
    return digest


def _sources() -> dict[str, bytes]:
    files = {"__main__.py": _MAIN.encode(), "mvm/__init__.py": b""}
    for package in (mvm.guest, mvm.wire):
        directory = Path(package.__path__[0])
        for path in directory.rglob("*.py"):
            files[f"mvm/{directory.name}/{path.relative_to(directory).as_posix()}"] = path.read_bytes()
    return files


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, source in sorted(files.items()):
            archive.writestr(_entry(name), source)
            archive.writestr(_entry(f"{name}c"), _compiled(name, source))
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # Unix, whatever this host is
    entry.external_attr = 0o644 << 16
    return entry


def _compiled(name: str, source: bytes) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    return (
        importlib.util.MAGIC_NUMBER
        + _UNCHECKED_HASH
        + importlib.util.source_hash(source)
        + marshal.dumps(code, _PLAIN_MARSHAL)
    )
