"""Which runtime a new instance gets, and what is said of it."""

from __future__ import annotations

from tests.standins.instant_runtime import InstantRuntime

from mvm.host.runtimes import Runtimes
from mvm.runtime.base import Probe


class Missing(InstantRuntime):
    """A runtime that does not work on this host."""

    async def probe(self) -> Probe:
        return Probe(usable=False, reason="it is not installed")


async def test_what_matters_of_a_runtime_is_said_before_why_it_is_no_other() -> None:
    choice = await Runtimes({"qemu": Missing(name="qemu"), "process": InstantRuntime(name="process")}).choose()
    assert choice.runtime.name == "process"
    assert choice.reason == "it is only memory; not qemu: it is not installed"
