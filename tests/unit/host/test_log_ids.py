"""Log lines say what they are about: tenant, pool, instance, the request that led to it, and the message's trace."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.unit.host.live_agent import Agent

from mvm.model.entities import Instance
from mvm.model.errors import MvmError
from mvm.model.ids import InstanceId
from mvm.telemetry.logs import LogStyle, configure
from mvm.wire import messages, rpc

TRACE = "mvm-telegram:default:111:7"


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Any]:
    """What was logged so far, as JSON."""
    path = tmp_path / "log"
    level = logging.getLogger().level
    configure(LogStyle.JSON, level=logging.DEBUG, file=path)
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    for handler in logging.getLogger().handlers[:]:
        if isinstance(getattr(handler, "formatter", None), structlog.stdlib.ProcessorFormatter):
            logging.getLogger().removeHandler(handler)
            handler.close()
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()


async def asked(agent: Agent, instance: Instance, request: messages.WakeInstance) -> None:
    """An instance asks something of the host, over its own connection."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)
    serving = asyncio.create_task(agent.host.attachments._handler_for(instance.ref)(reader, writer))  # type: ignore[arg-type]
    ours_reader, ours_writer = await asyncio.open_connection(sock=ours)
    answer = await rpc.call(ours_reader, ours_writer, request, timeout=10)
    assert answer.success
    ours_writer.close()
    await ours_writer.wait_closed()
    await serving


async def test_a_wake_is_found_by_the_trace_of_its_message(agent: Agent, lines: Any) -> None:
    await agent.deploy()
    worker = agent.host.catalog.instances[InstanceId((await agent.worker())["instance_id"])]
    gateway = agent.host.gateways.gateway_of(worker.tenant_id)
    assert gateway is not None
    await agent.call("InstanceSleep", address=str(worker.ref), force=True)
    wake = messages.WakeInstance(
        tenant_id=worker.tenant_id, pool_id=worker.pool_id, instance_id=worker.instance_id, trace=TRACE
    )
    await asked(agent, gateway, wake)
    told = [line for line in lines() if line.get("trace") == TRACE]
    assert [line["event"] for line in told] == ["wake requested", "wake answered"]
    assert {line["instance"] for line in told} == {str(worker.ref)}
    (audited,) = [
        line
        for line in agent.host.chronicle.audit.recent(worker.tenant_id, 100)
        if line.get("detail") == f"trace {TRACE}"
    ]
    assert audited["action"] == "WakeRequested"


async def test_a_defect_is_found_by_the_id_that_its_caller_was_told(
    agent: Agent, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    await agent.deploy()
    address = await agent.address()
    monkeypatch.setattr(agent.host.lifecycle, "start", broken)
    with pytest.raises(MvmError) as caught:
        await agent.call("InstanceStart", address=address)
    request_id = (caught.value.hint or "").rpartition(" ")[2]
    (told,) = [line for line in lines() if line["event"] == "request failed"]
    assert (told["request_id"], told["request"]) == (request_id, "InstanceStart")


async def test_work_on_an_instance_names_it(agent: Agent, lines: Any) -> None:
    await agent.deploy()
    worker = agent.host.catalog.instances[InstanceId((await agent.worker())["instance_id"])]
    async with agent.host.lifecycle.locked(worker.ref):
        structlog.get_logger("somewhere").info("deep down")
    structlog.get_logger("somewhere").info("elsewhere")
    deep, elsewhere = lines()[-2:]
    assert (deep["tenant"], deep["pool"], deep["instance"]) == ("alice", "workers", worker.instance_id)
    assert "instance" not in elsewhere
