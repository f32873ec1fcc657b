"""`mvm agent serve` on a host whose Firecracker is the stand-in: started in its place by tests of whole deployments.

Two things of that host are not this one's: its KVM works, and its images are made in a second, of what the pool asks
for, by `images.make_image`. All the rest is the agent as it is.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tests.standins.firecracker.images import fill_image

import mvm.host.app
from mvm.cli.main import main
from mvm.image.base import BuildRequest, Inputs, Manifest, OnProgress, Readiness
from mvm.runtime.firecracker import FirecrackerRuntime


class QuickBuilder:
    """Builds images for the stand-in, in place of those of Debian's packages."""

    name = "debian"
    needs_contents = True

    def serves(self, role: str) -> str:
        return ""

    def at_work(self) -> AbstractContextManager[QuickBuilder]:
        return nullcontext(self)

    def probe(self) -> Readiness:
        return Readiness(usable=True, reason="nothing is needed")

    def resolve(self, request: BuildRequest, on_progress: OnProgress) -> Inputs:
        return Inputs(builder=self.name, request=request, document={"profile": request.profile})

    def build(self, inputs: Inputs, target: Path, on_progress: OnProgress) -> Manifest:
        contents = inputs.request.contents
        fill_image(
            target,
            digest=inputs.digest,
            openclaw=contents.openclaw_dir,
            plugin=contents.plugin_dir,
            node=contents.node,
        )
        return Manifest.read(target)

    def stale(self) -> list[Path]:
        return []


async def nothing_wrong() -> None:
    """KVM works."""


if __name__ == "__main__":
    mvm.host.app.image_builders = lambda locations, machines: [QuickBuilder()]  # type: ignore[assignment,list-item]
    FirecrackerRuntime.__init__.__kwdefaults__["why_no_kvm"] = nothing_wrong
    sys.exit(main(sys.argv[1:]))
