"""A builder that takes no time, and what it builds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from mvm.image.base import (
    FILES,
    BuildRequest,
    Contents,
    Inputs,
    Manifest,
    OnProgress,
    Readiness,
    Source,
    describe_files,
)
from mvm.openclaw.install import Progress

CONTENTS = Contents(
    node=Path("/node"), openclaw_dir=Path("/openclaw"), zipapp=Path("/guest.pyz"), plugin_dir=Path("/plugin")
)
SOURCE = Source(flake="", url="", lock_hash="0", attribute="packages.x.y", derivation="d.drv")


class QuickBuilder:
    """Builds files of a few bytes; `version` stands for everything that is put into an image. `nix` takes flakes."""

    def __init__(self, name: str = "debian", version: str = "1", *, usable: bool = True) -> None:
        self.name = name
        self.from_flakes = name == "nix"
        self.needs_contents = not self.from_flakes
        self.version = version
        self.usable = usable
        self.builds = 0
        self.before_files: Callable[[], None] = lambda: None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.began = threading.Event()
        self.kept: list[Path] = []

    def serves(self, role: str) -> str:
        return role if self.from_flakes else ""

    def at_work(self) -> AbstractContextManager[QuickBuilder]:
        return nullcontext(self)

    def probe(self) -> Readiness:
        return Readiness(usable=self.usable, reason="it works" if self.usable else "it is not installed")

    def resolve(self, request: BuildRequest, on_progress: OnProgress) -> Inputs:
        document = {"version": self.version, "profile": request.profile}
        if self.from_flakes:
            document |= {"role": request.role, "flake": request.flake}
        return Inputs(builder=self.name, request=request, document=document)

    def build(self, inputs: Inputs, target: Path, on_progress: OnProgress) -> Manifest:
        self.builds += 1
        self.began.set()
        while not self.may_go_on.wait(0.01):
            on_progress(Progress(text="building"))
        on_progress(Progress(text="building", done=1, total=2))
        (target / FILES[0]).write_text(self.version)
        self.before_files()
        for name in FILES[1:]:
            (target / name).write_text(self.version)
        manifest = manifest_of(inputs, target)
        manifest.write(target)
        return manifest

    def stale(self) -> list[Path]:
        return self.kept


def manifest_of(inputs: Inputs, target: Path) -> Manifest:
    return Manifest(
        digest=inputs.digest,
        builder=inputs.builder,
        profile=inputs.request.profile,
        architecture="x86_64",
        kernel_release="6.1",
        kernel_arguments=(),
        modules=("erofs",),
        node="24.16.0",
        openclaw="2026.9.6",
        zipapp="0" * 64,
        packages={},
        files=describe_files(target),
        source=SOURCE.model_copy(update={"flake": inputs.request.flake}) if inputs.builder == "nix" else None,
    )


def inputs(version: str = "1", **changes: object) -> Inputs:
    request = replace(BuildRequest(contents=CONTENTS), **changes)  # type: ignore[arg-type]
    return QuickBuilder(version=version).resolve(request, lambda progress: None)
