"""Builds images with Nix: what a flake offers is looked up, evaluated, built, and copied out of Nix's store."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvm.image.base import (
    INITRD,
    KERNEL,
    MANIFEST,
    ROOTS,
    BuildRequest,
    Inputs,
    Manifest,
    OnProgress,
    Readiness,
    Source,
    Work,
)
from mvm.image.builders import NIX_FLAKE
from mvm.image.nix import artifacts, program, reference
from mvm.image.nix.flakes import Flake, Lookup
from mvm.image.nix.own import own_flake
from mvm.image.nix.place import Machines, Place
from mvm.image.nix.program import HostPlace, Nix, as_json
from mvm.model.errors import InvalidInput, MvmError, Unavailable
from mvm.model.roles import Role
from mvm.openclaw.install import Progress

NAME = artifacts.BUILDER
VERSION = 1
"""Raised whenever the same derivation would give another revision."""
LIMIT_SECONDS = 4 * 3600.0
"""A build that takes everything from a binary cache needs minutes; one that compiles a kernel, hours."""
STALE_SECONDS = 30 * 24 * 3600.0
"""A log, or a packed flake of mvm's, that no build needed for this long is garbage."""

_FILES = (KERNEL, INITRD, *ROOTS, MANIFEST)
_INSTALL = 'install Nix (https://nixos.org/download; on Debian: apt-get install nix-bin), or say flake = "debian:"'

Where = Callable[[BuildRequest, OnProgress], Place]


@dataclass(frozen=True, kw_only=True)
class NixInputs(Inputs):
    """Inputs with what is to be built."""

    flake: Flake
    source: Source
    nix: Nix


class NixWork:
    """Looks flakes up and builds them, in whatever place (`mvm.image.base.Work`)."""

    def __init__(self, cache: Path, limit: float, where: Where) -> None:
        """`where` gives the place that a request is resolved and built in."""
        self._cache = cache
        self._limit = limit
        self._where = where

    def resolve(self, request: BuildRequest, on_progress: OnProgress) -> Inputs:
        named = _named(request)
        profile, role = reference.check_profile(request.profile), Role.parse(request.role)
        system = reference.system(os.uname().machine)
        log = self._log(role, profile, request.flake)
        place = self._where(request, on_progress)
        nix = Nix(place, log)
        log.unlink(missing_ok=True)
        lookup = Lookup(nix, self._cache, system, on_progress)
        flake, package = lookup.find(named, role, profile)
        source = Source(
            flake=request.flake,
            url=place.original(flake.url),
            lock_hash=flake.lock_hash,
            application=place.original(flake.application),
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
        place = inputs.nix.place
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._cache) as name:
            directory = Path(name)
            # The link keeps Nix's own garbage collection off what is copied.
            link = place.link(directory)
            text = inputs.nix.ask(
                ["build", *inputs.flake.installable(inputs.source.attribute), "--out-link", str(link), "--json"],
                what=what,
                on_progress=on_progress,
                limit=self._limit,
            )
            if (gave := _derivation_of(as_json(text, what))) != inputs.source.derivation:
                raise Unavailable(
                    f"{what} gave something else than was found at first: {gave[:100] or 'nothing'}",
                    hint="the flake, or what it takes in and does not lock, has changed meanwhile: try again",
                )
            output = place.fetch(link, _FILES, directory, on_progress)
            return artifacts.take(output, target, inputs, inputs.source, os.uname().machine, on_progress)

    def _log(self, role: Role, profile: str, flake: str) -> Path:
        """Where everything is written that nix tells about an image; each attempt begins anew."""
        return self._cache / f"{reference.output(role, profile)}-{_digest(flake)[:8]}.log"


class NixBuilder(NixWork):
    """The `nix` of this host: its store, its daemon, its caches, its configuration."""

    name = NAME
    needs_contents = False

    def __init__(self, cache: Path, *, limit: float = LIMIT_SECONDS) -> None:
        """`cache` is where logs and mvm's own flake are kept; `limit` is how many seconds a build may take."""
        super().__init__(cache / NAME, limit, lambda _request, _on_progress: self._place())
        self._probed: tuple[tuple[Path, int], Readiness] | None = None

    def serves(self, role: str) -> str:
        return role

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
        Nix(self._place(), None).ask(["ping-store"], what="opening Nix's store", on_progress=_ignore)

    def at_work(self) -> AbstractContextManager[Work]:
        return nullcontext(self)

    def stale(self) -> list[Path]:
        return _stale(self._cache)

    def _place(self) -> Place:
        readiness, found = self.probe(), program.find()
        if not readiness.usable or found is None:
            raise Unavailable(f"images cannot be built with Nix here: {readiness.reason}", hint=readiness.remedy)
        return HostPlace(found)


class NixMachineBuilder:
    """The `nix` of a machine that is made for each image: what a flake's code does, it does there (ADR 32)."""

    name = NAME
    needs_contents = False

    def __init__(self, cache: Path, machines: Machines, *, limit: float = LIMIT_SECONDS) -> None:
        """As with `NixBuilder`; `machines` makes them."""
        self._cache = cache / NAME
        self._machines = machines
        self._limit = limit

    def serves(self, role: str) -> str:
        return role

    def probe(self) -> Readiness:
        return self._machines.probe()

    @contextmanager
    def at_work(self) -> Iterator[Work]:
        with ExitStack() as stack:
            places: list[Place] = []

            def where(request: BuildRequest, on_progress: OnProgress) -> Place:
                if not places:
                    sources = self._sources(_named(request))
                    places.append(stack.enter_context(self._machines.machine(request.tenant, sources, on_progress)))
                return places[0]

            yield NixWork(self._cache, self._limit, where)

    def stale(self) -> list[Path]:
        return [*_stale(self._cache), *self._machines.stale()]

    def _sources(self, named: str) -> dict[Path, str]:
        """What of this host the machine needs: a flake that is here, and mvm's own, which takes applications in."""
        reference.require_flake(named)
        addresses = {"flake": named}
        with suppress(Unavailable):  # it is missed only where it is needed
            addresses["mvm"] = own_flake(self._cache)
        paths = {name: path for name, address in addresses.items() if (path := reference.local(address))}
        for path in paths.values():
            if not path.exists():
                raise InvalidInput(f"there is no '{path}'", hint="is the flake where the pool says it is?")
        # Nix knows an archive by the end of its name.
        return {path: name + (path.suffix if path.is_file() else "") for name, path in paths.items()}


def _named(request: BuildRequest) -> str:
    """The flake that a request names; empty: mvm's own."""
    return "" if request.flake in ("", NIX_FLAKE) else reference.check_flake(request.flake)


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


def _stale(cache: Path) -> list[Path]:
    kept = [*cache.glob("*.log"), *cache.glob("mvm-*.tar"), *cache.glob("build-*")]
    return sorted(path for path in kept if time.time() - path.lstat().st_mtime > STALE_SECONDS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ignore(_step: Progress) -> None:
    """Nobody watches."""
