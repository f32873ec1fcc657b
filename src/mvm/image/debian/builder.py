"""Builds images from Debian's packages, on any Debian host, without Nix."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mvm.image import nix_settings, prune, trees
from mvm.image.base import (
    INITRD,
    KERNEL,
    ROOTFS,
    BuildRequest,
    Contents,
    GuestContents,
    Inputs,
    Json,
    Manifest,
    OnProgress,
    Readiness,
    Work,
    describe_files,
    sha256,
)
from mvm.image.debian import initrd, kernel, rootfs
from mvm.image.debian.apt import Apt, Package
from mvm.image.debian.host import explain, missing_packages
from mvm.image.locks import only_one
from mvm.model.errors import InvalidInput, Unavailable
from mvm.openclaw.install import Progress
from mvm.openclaw.programs import node_version

NAME = "debian"
VERSION = 1
"""Raised whenever the same inputs would give another image."""
KERNEL_ARGUMENTS = ("rootfstype=erofs",)
KEY_LENGTH = 24
STALE_SECONDS = 30 * 24 * 3600.0
"""A layer or a download that no build needed for this long is garbage."""
NEEDED_DISK_MIB = 3000
"""The base takes 250 MiB, Node and OpenClaw 500, the image 300, downloads 120; the last two while building again."""

_KERNEL_PACKAGES = {"x86_64": "linux-image-cloud-amd64"}


@dataclass(frozen=True, kw_only=True)
class DebianInputs(Inputs):
    """Inputs with the packages that they stand for."""

    contents: GuestContents
    packages: tuple[Package, ...]
    kernel: Package


class DebianBuilder:
    """Debian packages by mmdebstrap, OpenClaw as it is installed on the host. Needs root."""

    name = NAME
    needs_contents = True

    def __init__(self, cache: Path) -> None:
        """`cache` is where downloads and layers are kept between builds; several processes may share it."""
        self._cache = cache
        self._apt = Apt(cache / "apt")

    def serves(self, role: str) -> str:
        return role if role in rootfs.ROLES else ""

    def at_work(self) -> AbstractContextManager[Work]:
        return nullcontext(self)

    def probe(self) -> Readiness:
        missing = missing_packages()
        if missing:
            message, remedy = explain(missing)
            return Readiness(usable=False, reason=message, remedy=remedy)
        if os.uname().machine not in _KERNEL_PACKAGES:
            return Readiness(usable=False, reason=f"there is no kernel package for {os.uname().machine} yet")
        if os.geteuid() != 0:
            return Readiness(
                usable=False,
                reason="a root file system with its owners is made by root, and this is not root",
                remedy="run the agent as root, or copy a revision that was built elsewhere into <state>/images",
            )
        return Readiness(usable=True, reason="mmdebstrap and all that it needs are there")

    def resolve(self, request: BuildRequest, on_progress: OnProgress) -> Inputs:
        readiness = self.probe()
        if not readiness.usable:
            raise Unavailable(f"images cannot be built here: {readiness.reason}", hint=readiness.remedy)
        if request.profile not in rootfs.PROFILES:
            raise InvalidInput(
                f"the Debian builder has no profile '{request.profile}'",
                hint=f"the profiles are: {', '.join(rootfs.PROFILES)}",
            )
        role = self.serves(request.role)
        if request.contents is None or not (role or isinstance(request.contents, Contents)):
            raise TypeError(f"the builder '{NAME}' was given nothing to put into an image")
        on_progress(Progress(text="resolving Debian packages"))
        self._apt.prepare(on_progress)
        packages = self._apt.resolve([*rootfs.PACKAGES, *rootfs.PROFILES[request.profile], *rootfs.ROLES.get(role, ())])
        kernel_package = self._kernel_package()
        on_progress(Progress(text="reading what goes into the image"))
        return DebianInputs(
            builder=NAME,
            contents=request.contents,
            packages=packages,
            kernel=kernel_package,
            request=request,
            document={
                "version": VERSION,
                "architecture": os.uname().machine,
                "profile": request.profile,
                "packages": {package.name: [package.version, package.sha256] for package in packages},
                "kernel": [kernel_package.wanted, kernel_package.sha256],
                "modules": list(initrd.MODULES),
                "init": _digest(initrd.script()),
                "busybox": sha256(initrd.BUSYBOX),
                **_describe_contents(request.contents),
                **_describe_role(role),
            },
        )

    def build(self, inputs: Inputs, target: Path, on_progress: OnProgress) -> Manifest:
        if not isinstance(inputs, DebianInputs):
            raise TypeError(f"inputs of the builder '{inputs.builder}' were given to '{NAME}'")
        request, contents = inputs.request, inputs.contents
        role = self.serves(request.role)
        work = self._directory("work")
        waiting = Progress(text="waiting for another build of an image")
        with only_one(self._cache / "lock", lambda: on_progress(waiting)):
            self._clear_unfinished()
            _require_space(self._cache)
            try:
                modules, release = self._make_kernel(inputs.kernel, work / "kernel", target, on_progress)
                layers = [self._base(inputs.packages, on_progress)]
                if not role and isinstance(contents, Contents):
                    layers.append(self._node(contents, inputs.document, on_progress))
                    layers.append(self._openclaw(contents, inputs.document, on_progress))
                on_progress(Progress(text="putting the layers together"))
                rootfs.assemble(work / "root", layers, contents, role)
                rootfs.pack(work / "root", target / ROOTFS, inputs.digest, on_progress)
            finally:
                self._clear_unfinished()
        on_progress(Progress(text="checking what was built"))
        manifest = Manifest(
            digest=inputs.digest,
            builder=NAME,
            role=role,
            profile=request.profile,
            architecture=os.uname().machine,
            kernel_release=release,
            kernel_arguments=KERNEL_ARGUMENTS,
            modules=modules,
            node=str(inputs.document.get("node_version", "")),
            openclaw=str(inputs.document.get("openclaw_version", "")),
            zipapp=str(inputs.document["zipapp"]),
            packages={package.name: package.version for package in (*inputs.packages, inputs.kernel)},
            files=describe_files(target),
        )
        manifest.write(target)
        return manifest

    def stale(self) -> list[Path]:
        kept = [*self._cache.glob("layers/[a-z]*"), *self._cache.glob("apt/archives/*.deb")]
        return sorted(path for path in kept if time.time() - path.stat().st_mtime > STALE_SECONDS)

    def reach(self) -> str:
        """Version of Debian's kernel, whose package of the stable name is fetched to see whether the mirror answers."""
        return self._apt.reach(_KERNEL_PACKAGES[os.uname().machine]).version

    def _kernel_package(self) -> Package:
        """The package with the kernel itself, which the one with the stable name depends on."""
        (meta,) = self._apt.describe([_KERNEL_PACKAGES[os.uname().machine]])
        name = next(line for line in meta.record.splitlines() if line.startswith("Depends:")).split()[1].rstrip(",")
        (package,) = self._apt.describe([name])
        return package

    def _make_kernel(
        self, package: Package, work: Path, target: Path, on_progress: OnProgress
    ) -> tuple[tuple[str, ...], str]:
        """Write kernel and initrd; returns the modules of the initrd and the kernel's release."""
        files = self._apt.download([package], on_progress)
        on_progress(Progress(text=f"unpacking the kernel {package.version}"))
        found = kernel.unpack(files[package], work)
        kernel.require_options(found.configuration.read_text(), of=found.release)
        kernel.extract(found.image, target / KERNEL)
        modules = kernel.modules(found, initrd.MODULES)
        (target / INITRD).write_bytes(initrd.build(modules, initrd.BUSYBOX.read_bytes()))
        return tuple(modules), found.release

    def _base(self, packages: tuple[Package, ...], on_progress: OnProgress) -> Path:
        key = _digest(repr((VERSION, [(package.wanted, package.sha256) for package in packages])).encode())

        def make(target: Path) -> None:
            files = self._apt.download(packages, on_progress)
            rootfs.make_base(target, files, self._apt.codename(), on_progress)

        return self._layer(f"base-{key[:KEY_LENGTH]}", make)

    def _node(self, contents: Contents, document: Json, on_progress: OnProgress) -> Path:
        key = _digest(repr((VERSION, document["node"])).encode())
        return self._layer(f"node-{key[:KEY_LENGTH]}", lambda target: rootfs.make_node(target, contents, on_progress))

    def _openclaw(self, contents: Contents, document: Json, on_progress: OnProgress) -> Path:
        key = _digest(repr((VERSION, document["openclaw"])).encode())
        return self._layer(
            f"openclaw-{key[:KEY_LENGTH]}", lambda target: rootfs.make_openclaw(target, contents, on_progress)
        )

    def _layer(self, name: str, make: Callable[[Path], None]) -> Path:
        """The layer of that name, made if it is not there: whole or not at all."""
        layers = self._directory("layers")
        layer = layers / name
        if not layer.is_dir():
            unfinished = self._directory("work") / name
            make(unfinished)
            os.sync()
            unfinished.rename(layer)
        os.utime(layer)
        return layer

    def _clear_unfinished(self) -> None:
        """What this build, or an earlier one that was killed, worked in."""
        for left in self._directory("work").iterdir():
            trees.remove(left)

    def _directory(self, name: str) -> Path:
        path = self._cache / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def _describe_role(role: str) -> dict[str, object]:
    """What an image has that serves one role only."""
    return {"role": role, "nix_configuration": nix_settings.configuration()} if role == "builder" else {}


def _describe_contents(contents: GuestContents) -> dict[str, object]:
    """What mvm puts into the image, by digests; `_version` is for people."""
    own: dict[str, object] = {"zipapp": sha256(contents.zipapp), "plugin": trees.digest(contents.plugin_dir)}
    if not isinstance(contents, Contents):
        return own
    tree = rootfs.module_tree(contents.openclaw_dir)
    openclaw = trees.digest(contents.openclaw_dir) if tree is None else trees.digest(tree, prune.keeps)
    return {
        "node": sha256(contents.node),
        "node_version": node_version(contents.node) or "unknown",
        "openclaw": openclaw,
        "openclaw_version": _npm_version(contents.openclaw_dir),
        **own,
    }


def _npm_version(package: Path) -> str:
    try:
        return str(json.loads((package / "package.json").read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _require_space(directory: Path) -> None:
    free = shutil.disk_usage(directory).free // 2**20
    if free < NEEDED_DISK_MIB:
        raise Unavailable(
            f"{directory} has {free} MiB free and building an image needs {NEEDED_DISK_MIB}",
            hint="free some space (`mvm pool gc` removes unused images), or choose another place with MVM_STATE_DIR",
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
