"""One invocation of `mvm`: where things are, and the agent that does what is asked."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mvm.host.client import AgentClient
    from mvm.host.locations import Locations

T = TypeVar("T")
Json = dict[str, Any]

_flags: ContextVar[dict[str, str | bool]] = ContextVar("flags")


def begin(**flags: str | bool | None) -> None:
    """Note the global flags of this invocation; None means that a flag was not given."""
    _flags.set({name: value for name, value in flags.items() if value is not None})


def locations(**flags: str | bool | None) -> Locations:
    """Directories and settings; `flags` are those of the command itself."""
    from mvm.host.locations import locate

    given = {name: value for name, value in flags.items() if value is not None}
    return locate({**_flags.get({}), **given})


async def agent() -> AgentClient:
    """The agent, started in the background when none runs (said on stderr)."""
    from mvm.host.autostart import ensure_agent

    return await ensure_agent(locations())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end; one failure inside a group of tasks counts as itself."""
    import asyncio

    from mvm.model.errors import MvmError

    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        known = group.subgroup(MvmError)
        if known is None:
            raise
        first: BaseException = known
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from group


def call(name: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Json:
    """Ask the agent for one thing and return the answer; its progress is shown on stderr meanwhile."""
    from mvm.cli.progress import shown

    async def ask() -> Json:
        client = await agent()
        with shown() as on_progress:
            return await client.call(name, params, on_progress=on_progress, timeout=timeout)

    return run(ask())


def given(**params: Any) -> Json:
    """Parameters of a request without those that were not given."""
    return {name: value for name, value in params.items() if value is not None and value != []}
