"""The guest's programs as one file: `mvm.guest` with `mvm.wire`, run as `python guest.pyz <sub-command>`.

Compiled code is packed beside the sources: a wake waits for these programs to come up, and compiling them would be most
of it. Another Python version ignores what it cannot read and takes the sources.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("mvm/guest", "mvm/wire")
MAIN = "from mvm.guest.__main__ import main\nimport sys\nsys.exit(main(sys.argv[1:]))\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNCHECKED = 1
"""Flag of compiled code that is taken without a look at its source (PEP 552)."""


def build_guest_zipapp(directory: Path, *, source: Path | None = None) -> Path:
    """Pack the guest's programs into `directory` and return the file, named by its sources and the Python version.

    An existing file of that name is taken as it is; a reader never sees half a file. `source` is the directory that
    holds the package `mvm`; default: this one's.
    """
    source = source or Path(__file__).resolve().parents[2]
    target = directory / f"guest-{_digest(source)}.pyz"
    if not target.is_file():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = directory / f".{target.name}.{os.getpid()}"
        unfinished.write_bytes(pack(source))
        unfinished.chmod(0o644)
        os.replace(unfinished, target)
    return target


def pack(source: Path) -> bytes:
    """Bytes of the zipapp."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, text in _modules(source):
            _add(archive, name, text)
            _add(archive, f"{name}c", _compiled(name, text))
    return packed.getvalue()


def _digest(source: Path) -> str:
    """Same for the same sources; the packed bytes are not, compiled code has more than one form."""
    digest = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name, text in _modules(source):
        digest.update(f"{len(name)}:{name}:{len(text)}:".encode())
        digest.update(text)
    return digest.hexdigest()[:16]


def _modules(source: Path) -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", MAIN.encode()
    yield "mvm/__init__.py", b""  # the host's may import what a guest does not have
    for package in PACKAGES:
        for path in sorted((source / package).rglob("*.py")):
            yield path.relative_to(source).as_posix(), path.read_bytes()


def _compiled(name: str, text: bytes) -> bytes:
    code = compile(text, name, "exec", dont_inherit=True)
    return b"".join(
        (
            importlib.util.MAGIC_NUMBER,
            _UNCHECKED.to_bytes(4, "little"),
            importlib.util.source_hash(text),
            marshal.dumps(code),
        )
    )


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
