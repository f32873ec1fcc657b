"""What comes out of a build in Nix's store, checked and copied into a revision: files, never links.

A flake is written by others and the agent is root. An output may consist of links, but only to files in the store: a
link elsewhere would carry a file of this host into a guest.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mvm.image.base import (
    INITRD,
    KERNEL,
    MANIFEST,
    ROOTFS,
    ROOTS,
    ImageFile,
    Inputs,
    Manifest,
    OnProgress,
    Source,
    describe_files,
)
from mvm.model.errors import InvalidInput
from mvm.model.validation import parse
from mvm.openclaw.install import Progress

BUILDER = "nix"
FORMAT = 1
LONGEST_MANIFEST = 2**22

_MIB = 2**20
_CHUNK = 16 * _MIB
_HINT = "tell who keeps the flake: docs/images.md has what an image consists of"
_MAGIC = {
    KERNEL: (0, b"\x7fELF", "an ELF file, as a machine starts it"),
    "erofs": (1024, b"\xe2\xe1\xf5\xe0", "an erofs file system"),
    "ext4": (1024 + 0x38, b"\x53\xef", "an ext4 file system"),
}
"""What a file is known by: where in it is what, and what is then said of one without it."""
_EXT4_INCOMPATIBLE, _EXT4_NEEDS_RECOVERY = 1024 + 0x60, 0x4
_EXT4_SUPERBLOCK_ENDS = 2048
_ROOT_KIND = "rootfstype="
"""Kernel argument by which the initial RAM disk knows how to mount the root."""
_KERNELS_OF_ANY_FORM = ("aarch64",)
"""Machines whose kernels are no ELF files."""


class Described(BaseModel):
    """What a flake's `manifest.json` says; the rest of a manifest is known here. Other keys are the flake's own."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    format: int = FORMAT
    role: str = ""
    profile: str = ""
    architecture: str = ""
    kernel_release: str
    kernel_arguments: tuple[str, ...]
    modules: tuple[str, ...] = ()
    node: str = ""
    openclaw: str = ""
    zipapp: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    files: dict[str, ImageFile] = Field(default_factory=dict)


def take(output: Path, target: Path, inputs: Inputs, source: Source, machine: str, on_progress: OnProgress) -> Manifest:
    """Copy an image from Nix's store into `target` and write its whole manifest there."""
    request = inputs.request
    store = output.resolve(strict=True).parent
    root = _root_of(output)
    names = (KERNEL, INITRD, root)
    files = {name: _file(output, name, store) for name in (*names, MANIFEST)}
    described = _described(files[MANIFEST])
    for what, said, wanted in (
        ("format", described.format, FORMAT),
        ("role", described.role or request.role, request.role),
        ("profile", described.profile or request.profile, request.profile),
        ("architecture", described.architecture or machine, machine),
    ):
        if said != wanted:
            raise InvalidInput(f"the image that was built is of {what} '{said}' instead of '{wanted}'", hint=_HINT)
    for name in names:
        if name != KERNEL or machine not in _KERNELS_OF_ANY_FORM:
            _check_form(files[name], name)
    _copy({name: files[name] for name in names}, target, on_progress)
    on_progress(Progress(text="checking what was built"))
    there = describe_files(target, names)
    for name, claimed in described.files.items():
        if name in there and there[name] != claimed:
            raise InvalidInput(f"{name} is not the file that the image's manifest describes", hint=_HINT)
    manifest = Manifest(
        digest=inputs.digest,
        builder=BUILDER,
        role=request.role,
        profile=request.profile,
        architecture=machine,
        kernel_release=described.kernel_release,
        kernel_arguments=(
            *(argument for argument in described.kernel_arguments if not argument.startswith(_ROOT_KIND)),
            f"{_ROOT_KIND}{ROOTS[root]}",
        ),
        modules=described.modules,
        node=described.node,
        openclaw=described.openclaw,
        zipapp=described.zipapp,
        packages=described.packages,
        files=there,
        source=source,
    )
    manifest.write(target)
    return manifest


def _root_of(output: Path) -> str:
    """The name of the root that was built: which of them there is."""
    there = [name for name in ROOTS if os.path.lexists(output / name)]
    if len(there) > 1:
        raise InvalidInput(f"what was built has both {' and '.join(there)}", hint="let the flake make one root")
    return there[0] if there else ROOTFS


def _file(output: Path, name: str, store: Path) -> Path:
    """A file of the output, which is in the store itself."""
    path = output / name
    try:
        real = path.resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"what was built has no {name}", hint=_HINT) from error
    if not regular or not real.is_relative_to(store):
        raise InvalidInput(f"{name} of what was built is no file of Nix's store", hint=_HINT)
    return real


def _described(path: Path) -> Described:
    try:
        if path.stat().st_size > LONGEST_MANIFEST:
            raise InvalidInput(f"{MANIFEST} of what was built is larger than {LONGEST_MANIFEST} bytes", hint=_HINT)
        document = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{MANIFEST} of what was built is no JSON: {error}", hint=_HINT) from error
    described = parse(Described, document, what=f"{MANIFEST} of what was built")
    if any(not argument.isprintable() or " " in argument for argument in described.kernel_arguments):
        raise InvalidInput(f"{MANIFEST} of what was built has a kernel argument with a space in it", hint=_HINT)
    return described


def _check_form(path: Path, name: str) -> None:
    kind = ROOTS.get(name, name)
    offset, magic, form = _MAGIC.get(kind, (0, b"", "of any size"))
    with path.open("rb") as file:
        file.seek(offset)
        fits = file.read(len(magic)) == magic
        whole = kind != "ext4" or path.stat().st_size >= _EXT4_SUPERBLOCK_ENDS
        file.seek(_EXT4_INCOMPATIBLE)
        unsettled = kind == "ext4" and fits and any(byte & _EXT4_NEEDS_RECOVERY for byte in file.read(1))
    if not fits or not whole or not path.stat().st_size:
        raise InvalidInput(f"{name} of what was built is not {form}", hint=_HINT)
    if unsettled:  # a journal cannot be played back on a drive that nobody may write to
        raise InvalidInput(f"{name} of what was built was not unmounted", hint=_HINT)


def _copy(files: dict[str, Path], target: Path, on_progress: OnProgress) -> None:
    total = sum(path.stat().st_size for path in files.values())
    done = 0
    for name, path in files.items():
        with path.open("rb") as source, (target / name).open("wb") as copy:
            while piece := source.read(_CHUNK):
                copy.write(piece)
                done += len(piece)
                on_progress(
                    Progress(text="copying the image (MiB)", done=done // _MIB, total=max(1, -(-total // _MIB)))
                )
        (target / name).chmod(0o644)
