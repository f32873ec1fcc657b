"""What a flake is at this moment, what it offers, and which of its packages is the image of a pool (CONTRACT 18)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mvm.image.base import OnProgress
from mvm.image.nix import reference
from mvm.image.nix.events import Told
from mvm.image.nix.explain import lacks_attribute
from mvm.image.nix.own import INPUT, own_flake
from mvm.image.nix.profiles import LONGEST, NAME, Profiles
from mvm.image.nix.program import Nix, as_json
from mvm.model.errors import InvalidInput, MvmError, Unavailable
from mvm.model.roles import Role
from mvm.openclaw.install import Progress

LONGEST_NAME = 1024
"""Characters of what nix calls a flake or a derivation, which is kept with the image."""


@dataclass(frozen=True, kw_only=True)
class Flake:
    """A flake as it is at this moment."""

    called: str
    """What it is called in messages."""
    url: str
    """Names just this content, where the flake can be locked."""
    lock_hash: str
    store_path: PurePosixPath
    """Its sources, in Nix's store, wherever that is."""
    subdirectory: str = ""
    """Where `flake.nix` is in them."""
    options: tuple[str, ...] = ()
    """What every run of nix needs to see the same."""
    application: str = ""

    def attribute(self, system: str, package: str) -> str:
        """Where a package for a system is in the flake."""
        return f"packages.{system}.{package}"

    def installable(self, attribute: str) -> tuple[str, ...]:
        """An output of the flake as nix's arguments; a lock file is never written beside somebody's flake."""
        return ("--no-write-lock-file", *self.options, f"{self.url}#{attribute}")


class Lookup:
    """Finds images in flakes, asking nix."""

    def __init__(self, nix: Nix, cache: Path, system: str, on_progress: OnProgress) -> None:
        """`cache` is where mvm's own flake is put for nix; `system` is what nix calls this machine."""
        self._nix = nix
        self._cache = cache
        self._system = system
        self._on_progress = on_progress

    def find(self, named: str, role: Role, profile: str) -> tuple[Flake, str]:
        """The flake to build from, and the package; `named` is what the pool names, empty: mvm's own.

        A flake with `mvm-profiles.toml` has packages for roles; one without has `tenant-<profile>`, or it is an
        application, which mvm's own flake takes in.
        """
        reference.require_flake(named)
        flake = self._locked(named) if named else self._own()
        profiles = self._profiles(flake)
        if profiles is None:
            packages = self._packages(flake)
            if reference.offers_images(packages):
                package = reference.legacy_output(profile)
                if package not in packages:
                    raise reference.no_such_output(flake.called, package, self._system, packages)
                return flake, package
            self._on_progress(Progress(text=f"{flake.called} is an application: mvm's own modules take it in"))
            flake = self._own(application=flake)
            profiles = self._profiles(flake)
        if profiles is not None:
            profiles.check(flake.called, role, profile)
        return flake, reference.output(role, profile)

    def derivation(self, flake: Flake, package: str) -> str:
        """Name of what would be built: Nix's digest of everything that decides what comes out."""
        what = f"evaluating {package} of {flake.called}"
        try:
            text = self._nix.ask(
                ["path-info", "--derivation", *flake.installable(flake.attribute(self._system, package))],
                what=what,
                on_progress=self._on_progress,
                on_failure=_none_such,
            )
        except _NoneSuch:
            packages = self._packages(flake)
            raise reference.no_such_output(flake.called, package, self._system, packages) from None
        return Path(_of_a_names_length(text.strip(), what)).name

    def _profiles(self, flake: Flake) -> Profiles | None:
        """The flake's `mvm-profiles.toml`, if it has one."""
        name = str(PurePosixPath(flake.subdirectory, NAME))
        content = self._nix.place.read(flake.store_path, name, longest=LONGEST)
        return None if content is None else Profiles.parse(content, flake.called)

    def _own(self, application: Flake | None = None) -> Flake:
        """mvm's own flake; put together with an application where one is given."""
        address = own_flake(self._cache)
        if application is None:
            return self._locked(address, called="mvm's own flake")
        return self._locked(
            address,
            called=f"mvm's own flake with {application.called} in it",
            options=("--override-input", INPUT, application.url),
            application=application.url,
        )

    def _locked(self, address: str, *, called: str = "", options: tuple[str, ...] = (), application: str = "") -> Flake:
        """The flake as it is now, so that everything after this sees the same."""
        called = called or f"the flake '{address}'"
        what = f"reading {called}"
        text = self._nix.ask(
            ["flake", "metadata", "--json", "--no-write-lock-file", *options, self._nix.place.address(address)],
            what=what,
            on_progress=self._on_progress,
        )
        found = as_json(text, what)
        try:
            url, locked, locks = str(found["url"]), found["locked"], found["locks"]
            subdirectory = str(locked.get("dir", ""))
            for name in (url, subdirectory):
                _of_a_names_length(name, what)
            store_path = PurePosixPath(_of_a_names_length(found.get("path") or self._fetched(url, called), what))
            content = json.dumps([locked.get("narHash"), locked.get("rev"), locks], sort_keys=True)
        except (KeyError, TypeError, AttributeError, RecursionError):
            raise Unavailable(
                f"{what}: nix does not say where it is", hint=f"is this a nix of another kind? See {self._nix.log}"
            ) from None
        return Flake(
            called=called,
            url=url,
            lock_hash=hashlib.sha256(content.encode()).hexdigest(),
            store_path=store_path,
            subdirectory=subdirectory,
            options=options,
            application=application,
        )

    def _fetched(self, url: str, called: str) -> str:
        """Where the sources of a flake are, by a nix that does not put them into its store before it is told to."""
        what = f"fetching {called}"
        text = self._nix.ask(["flake", "prefetch", "--json", url], what=what, on_progress=self._on_progress)
        return str(as_json(text, what)["storePath"])

    def _packages(self, flake: Flake) -> list[str]:
        """Names of the flake's packages for this host."""
        what = f"asking {flake.called} what it offers"
        try:
            text = self._nix.ask(
                ["eval", "--json", *flake.installable(f"packages.{self._system}"), "--apply", "builtins.attrNames"],
                what=what,
                on_progress=self._on_progress,
                on_failure=_none_such,
            )
        except _NoneSuch:
            return []
        return [str(name) for name in as_json(text, what)]


def _of_a_names_length(name: str, what: str) -> str:
    """A name that nix gave, unless it is longer than any."""
    if len(name) > LONGEST_NAME:
        raise InvalidInput(
            f"{what}: nix gave a name of more than {LONGEST_NAME} characters", hint="tell who keeps the flake"
        )
    return name


class _NoneSuch(MvmError):
    """The flake has no such output; whoever asks says so in words of their own."""


def _none_such(told: Told) -> MvmError | None:
    return _NoneSuch("the flake has no such output") if lacks_attribute(told) else None
