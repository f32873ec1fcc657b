"""Which runtimes there are, and which one a new instance gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mvm.model.entities import Instance
from mvm.model.errors import InvalidInput, Refused, Unavailable
from mvm.runtime.base import Probe, Runtime

AUTO_ORDER = ("firecracker", "qemu", "process")
"""`auto` takes the first of these that is there and works (DESIGN, "How an instance runs")."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A chosen runtime and why it was chosen, in words for the operator."""

    runtime: Runtime
    reason: str


class NotIsolated(Refused):
    """Production mode runs nothing by a runtime that does not isolate tenants; it may once the host is mended."""


class Runtimes:
    """The runtimes of this host by name."""

    def __init__(self, runtimes: Mapping[str, Runtime], *, wanted: str = "auto", production: bool = False) -> None:
        self._runtimes = dict(runtimes)
        self._wanted = wanted
        self._production = production
        self._probes: dict[str, Probe] = {}
        self._choice: Choice | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._runtimes)

    def named(self, name: str) -> Runtime:
        """The runtime of that name."""
        try:
            return self._runtimes[name]
        except KeyError:
            raise InvalidInput(
                f"runtime {name!r} is unknown", hint=f"the runtimes are: auto, {', '.join(self._runtimes)}"
            ) from None

    def of(self, instance: Instance) -> Runtime:
        """The runtime that runs an instance."""
        return self.named(instance.runtime)

    def require_isolated(self, runtime: Runtime) -> None:
        """Raise `NotIsolated` when production mode keeps a runtime, as it works here now, from running anything."""
        if not self._production or runtime.capabilities.isolated:
            return
        hint = "use virtual machines (MVM_RUNTIME=qemu), or unset MVM_PRODUCTION where nobody needs isolation"
        if runtime.capabilities.relayed:
            hint = "`mvm doctor` says what the networks of tenants lack; start the agent again when that is mended"
        raise NotIsolated(
            f"runtime {runtime.name!r} does not isolate tenants and production mode refuses it", hint=hint
        )

    async def probe(self, name: str) -> Probe:
        """Whether a runtime works here; tried once per agent run."""
        if name not in self._probes:
            self._probes[name] = await self.named(name).probe()
        return self._probes[name]

    async def choose(self, wanted: str | None = None) -> Choice:
        """The runtime for new instances: the wanted one, or with `auto` the first that works, saying why."""
        wanted = wanted or self._wanted
        if wanted != "auto":
            return await self._choose_named(wanted)
        if self._choice is None:
            self._choice = await self._choose_first()
        return self._choice

    async def _choose_named(self, name: str) -> Choice:
        runtime = self.named(name)
        self.require_isolated(runtime)
        probe = await self.probe(name)
        if not probe.usable:
            raise Unavailable(f"runtime {name!r} does not work here: {probe.reason}", hint=probe.remedy)
        return Choice(runtime=runtime, reason=_because("asked for by name", probe))

    async def _choose_first(self) -> Choice:
        passed_over: list[str] = []
        for name in AUTO_ORDER:
            if name not in self._runtimes:
                continue
            probe = await self.probe(name)
            if probe.usable and probe.unasked:
                runtime = self._runtimes[name]
                self.require_isolated(runtime)
                return Choice(runtime=runtime, reason=_because("; ".join(passed_over), probe))
            passed_over.append(f"not {name}: {probe.reason}")
        raise Unavailable(
            f"no runtime works on this host ({'; '.join(passed_over)})", hint="`mvm doctor` says what is missing"
        )


def _because(choice: str, probe: Probe) -> str:
    """What is to be known of a runtime, what would change that, and last why it is this one."""
    return "; ".join(part for part in (probe.reason, probe.remedy, choice) if part)
