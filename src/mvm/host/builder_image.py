"""The image of the machines that Nix builds in: made by mvm's own builder of what there is now, and kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from mvm.image.base import Builder, BuildRequest, GuestContents, OnProgress, Readiness
from mvm.image.revisions import Revisions
from mvm.model.roles import Role

STALE_SECONDS = 30 * 24 * 3600.0
"""One that no build needed for this long is of earlier packages or of an earlier mvm."""


class BuilderImage:
    """Kept beside the layers that it is made of, and not among the images of pools: none of those has it."""

    def __init__(self, builder: Builder, contents: Callable[[], GuestContents], cache: Path) -> None:
        """`builder` makes it out of `contents`; it is kept in a directory of `cache`."""
        self._builder = builder
        self._contents = contents
        self._revisions = Revisions(cache / "builders")

    def probe(self) -> Readiness:
        """Whether it can be made here."""
        return self._builder.probe()

    def make(self, on_progress: OnProgress) -> Path:
        """Its directory; built first when there is none of what there is now."""
        with self._builder.at_work() as work:
            request = BuildRequest(contents=self._contents(), role=Role.BUILDER.value)
            image = self._revisions.build(work, work.resolve(request, on_progress), on_progress)
        os.utime(image)  # needed now
        return image

    def stale(self) -> list[Path]:
        """Those that were not needed for long."""
        oldest = time.time() - STALE_SECONDS
        return [one.directory for one in self._revisions.all() if one.directory.stat().st_mtime < oldest]
