"""A revision of an image for the stand-in: a kernel by name only, and a real erofs with mvm's real guest in it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from mvm.drives import erofs
from mvm.image.base import INITRD, KERNEL, ROOTFS, Manifest, describe_files, sha256
from mvm.image.guest_zipapp import build_zipapp

ELF = b"\x7fELF\x02\x01\x01".ljust(64, b"\0")
DIGEST = "5" * 32


def make_image(directory: Path, *, openclaw: Path, plugin: Path | None = None, node: Path | None = None) -> Path:
    """A revision whose OpenClaw is what is in the directory `openclaw`.

    `node` runs it, Python where that is None; `plugin` is mvm's, or an empty one.
    """
    image = directory / DIGEST
    image.mkdir(parents=True)
    fill_image(image, digest=DIGEST, openclaw=openclaw, plugin=plugin, node=node)
    return image


def fill_image(
    image: Path, *, digest: str, openclaw: Path, plugin: Path | None = None, node: Path | None = None
) -> None:
    """Make an empty directory a revision of that name."""
    (image / KERNEL).write_bytes(ELF)
    (image / INITRD).write_bytes(b"an initial RAM disk")
    with tempfile.TemporaryDirectory(dir=image.parent) as made:
        tree = Path(made)
        guest = tree / "opt/mvm/guest.pyz"
        guest.parent.mkdir(parents=True)
        build_zipapp(guest)
        shutil.copytree(openclaw, tree / "opt/openclaw/node_modules/openclaw")
        if plugin is None:
            (tree / "opt/mvm/openclaw-plugin").mkdir()
            (tree / "opt/mvm/openclaw-plugin/openclaw.plugin.json").write_text("{}")
        else:
            shutil.copytree(plugin, tree / "opt/mvm/openclaw-plugin")
        runner = tree / "usr/local/bin/node"
        runner.parent.mkdir(parents=True)
        runner.write_text(f'#!/bin/sh\nexec {os.path.realpath(node or sys.executable)} "$@"\n')
        runner.chmod(0o755)
        (image / ROOTFS).write_bytes(erofs.render(tree))
        zipapp = sha256(guest)
    manifest(digest, zipapp, image).write(image)


def make_bare_image(directory: Path) -> Path:
    """A revision with nothing on its root: its machines do all that machines do, and no guest ever answers."""
    image = directory / DIGEST
    image.mkdir(parents=True)
    (image / KERNEL).write_bytes(ELF)
    (image / INITRD).write_bytes(b"an initial RAM disk")
    with tempfile.TemporaryDirectory(dir=directory) as made:
        (image / ROOTFS).write_bytes(erofs.render(Path(made)))
    manifest(DIGEST, "", image).write(image)
    return image


def manifest(digest: str, zipapp: str, image: Path) -> Manifest:
    """What the revision says of itself."""
    return Manifest(
        digest=digest,
        builder="debian",
        profile="minimal",
        architecture="amd64",
        kernel_release="6.1.0-standin",
        kernel_arguments=("quiet",),
        modules=(),
        node="24.19.0",
        openclaw="0.0.0",
        zipapp=zipapp,
        packages={},
        files=describe_files(image),
    )
