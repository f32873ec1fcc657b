"""What comes out of a build in Nix's store, checked and copied into a revision: files, never links.

A flake is written by others and the agent is root. An output may consist of links, but only to files in the store: a
link elsewhere would carry a file of this host into a guest.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mvm.image.base import (
    FILES,
    KERNEL,
    MANIFEST,
    ROOTFS,
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
_OTHER_ROOT = "rootfs.ext4"
_MAGIC = {KERNEL: (0, b"\x7fELF"), ROOTFS: (1024, b"\xe2\xe1\xf5\xe0")}
"""What a file is known by, and where in it: ELF, and erofs."""
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
    files = {name: _file(output, name, store) for name in (*FILES, MANIFEST)}
    described = _described(files[MANIFEST])
    for what, said, wanted in (
        ("format", described.format, FORMAT),
        ("role", described.role or request.role, request.role),
        ("profile", described.profile or request.profile, request.profile),
        ("architecture", described.architecture or machine, machine),
    ):
        if said != wanted:
            raise InvalidInput(f"the image that was built is of {what} '{said}' instead of '{wanted}'", hint=_HINT)
    for name in FILES:
        if name != KERNEL or machine not in _KERNELS_OF_ANY_FORM:
            _check_form(files[name], name)
    _copy({name: files[name] for name in FILES}, target, on_progress)
    on_progress(Progress(text="checking what was built"))
    there = describe_files(target)
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
        kernel_arguments=described.kernel_arguments,
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


def _file(output: Path, name: str, store: Path) -> Path:
    """A file of the output, which is in the store itself."""
    path = output / name
    try:
        real = path.resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError) as error:
        if name == ROOTFS and (output / _OTHER_ROOT).exists():
            raise InvalidInput(
                f"the image has its root as {_OTHER_ROOT}, which mvm's machines do not boot",
                hint=f"let the flake make {ROOTFS} (mkfs.erofs)",
            ) from error
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
    offset, magic = _MAGIC.get(name, (0, b""))
    with path.open("rb") as file:
        file.seek(offset)
        fits = file.read(len(magic)) == magic
    if not fits or not path.stat().st_size:
        form = {KERNEL: "an ELF file, as a machine starts it", ROOTFS: "an erofs file system"}.get(name, "of any size")
        raise InvalidInput(f"{name} of what was built is not {form}", hint=_HINT)


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
