"""Builds images with Nix: what a flake offers is looked up, evaluated, built, and copied out of Nix's store."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvm.image.base import BuildRequest, Inputs, Manifest, OnProgress, Readiness, Source
from mvm.image.builders import NIX_FLAKE
from mvm.image.nix import artifacts, program, reference
from mvm.image.nix.flakes import Flake, Lookup
from mvm.image.nix.program import Nix, as_json
from mvm.model.errors import MvmError, Unavailable
from mvm.model.roles import Role
from mvm.openclaw.install import Progress

NAME = artifacts.BUILDER
VERSION = 1
"""Raised whenever the same derivation would give another revision."""
LIMIT_SECONDS = 4 * 3600.0
"""A build that takes everything from a binary cache needs minutes; one that compiles a kernel, hours."""
STALE_SECONDS = 30 * 24 * 3600.0
"""A log, or a packed flake of mvm's, that no build needed for this long is garbage."""

_LINK = "result"
_INSTALL = 'install Nix (https://nixos.org/download; on Debian: apt-get install nix-bin), or say flake = "debian:"'


@dataclass(frozen=True, kw_only=True)
class NixInputs(Inputs):
    """Inputs with what is to be built."""

    flake: Flake
    source: Source
    nix: Nix


class NixBuilder:
    """The `nix` of this host: its store, its daemon, its caches, its configuration."""

    name = NAME
    needs_contents = False
    per_role = True

    def __init__(self, cache: Path, *, limit: float = LIMIT_SECONDS) -> None:
        """`cache` is where logs and mvm's own flake are kept; `limit` is how many seconds a build may take."""
        self._cache = cache / NAME
        self._limit = limit
        self._probed: tuple[tuple[Path, int], Readiness] | None = None

    def probe(self) -> Readiness:
        """Whether there is a nix that is new enough. Asked for whenever a machine starts, so what it says is kept."""
        found = program.find()
        if found is None:
            return Readiness(usable=False, reason="there is no nix on this host", remedy=_INSTALL)
        key = (found, found.stat().st_mtime_ns)
        if self._probed is None or self._probed[0] != key:
            self._probed = key, _readiness(found)
        return self._probed[1]

    def reach(self) -> None:
        """Have nix open its store, by its daemon where there is one; what keeps it from that is raised."""
        # By the old name of `nix store ping`, which has become `nix store info`: every version knows it.
        Nix(self._program(), None).ask(["ping-store"], what="opening Nix's store", on_progress=_ignore)

    def resolve(self, request: BuildRequest, on_progress: OnProgress) -> Inputs:
        named = "" if request.flake in ("", NIX_FLAKE) else reference.check_flake(request.flake)
        profile, role = reference.check_profile(request.profile), Role.parse(request.role)
        system = reference.system(os.uname().machine)
        log = self._log(role, profile, request.flake)
        nix = Nix(self._program(), log)
        log.unlink(missing_ok=True)
        lookup = Lookup(nix, self._cache, system, on_progress)
        flake, package = lookup.find(named, role, profile)
        source = Source(
            flake=request.flake,
            url=flake.url,
            lock_hash=flake.lock_hash,
            application=flake.application,
            attribute=flake.attribute(system, package),
            derivation=lookup.derivation(flake, package),
        )
        return NixInputs(
            builder=NAME,
            request=request,
            flake=flake,
            source=source,
            nix=nix,
            document={
                "version": VERSION,
                "role": str(role),
                "profile": profile,
                "flake": request.flake,
                "attribute": source.attribute,
                "derivation": source.derivation,
            },
        )

    def build(self, inputs: Inputs, target: Path, on_progress: OnProgress) -> Manifest:
        if not isinstance(inputs, NixInputs):
            raise TypeError(f"inputs of the builder '{inputs.builder}' were given to '{NAME}'")
        what = f"building {inputs.source.attribute} of {inputs.flake.called}"
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._cache) as directory:
            # The link keeps Nix's own garbage collection off what is copied.
            link = Path(directory) / _LINK
            text = inputs.nix.ask(
                ["build", *inputs.flake.installable(inputs.source.attribute), "--out-link", str(link), "--json"],
                what=what,
                on_progress=on_progress,
                limit=self._limit,
            )
            if (gave := _derivation_of(as_json(text, what))) != inputs.source.derivation:
                raise Unavailable(
                    f"{what} gave something else than was found at first: {gave or 'nothing'}",
                    hint="the flake, or what it takes in and does not lock, has changed meanwhile: try again",
                )
            return artifacts.take(link, target, inputs, inputs.source, os.uname().machine, on_progress)

    def stale(self) -> list[Path]:
        kept = [*self._cache.glob("*.log"), *self._cache.glob("mvm-*.tar"), *self._cache.glob("build-*")]
        return sorted(path for path in kept if time.time() - path.lstat().st_mtime > STALE_SECONDS)

    def _program(self) -> Path:
        readiness, found = self.probe(), program.find()
        if not readiness.usable or found is None:
            raise Unavailable(f"images cannot be built with Nix here: {readiness.reason}", hint=readiness.remedy)
        return found

    def _log(self, role: Role, profile: str, flake: str) -> Path:
        """Where everything is written that nix tells about an image; each attempt begins anew."""
        return self._cache / f"{reference.output(role, profile)}-{_digest(flake)[:8]}.log"


def _readiness(found: Path) -> Readiness:
    try:
        major, minor = program.version(found)
    except MvmError as error:
        return Readiness(usable=False, reason=error.message, remedy=error.hint)
    if (major, minor) < program.OLDEST:
        oldest = ".".join(map(str, program.OLDEST))
        return Readiness(usable=False, reason=f"nix {major}.{minor} is older than {oldest}", remedy=_INSTALL)
    return Readiness(usable=True, reason=f"nix {major}.{minor} is there")


def _derivation_of(built: Any) -> str:
    """Name of the one derivation that was built, of what `nix build --json` prints."""
    try:
        (one,) = built
        return Path(one["drvPath"]).name
    except (ValueError, KeyError, TypeError):
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ignore(_step: Progress) -> None:
    """Nobody watches."""
