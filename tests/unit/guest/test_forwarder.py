"""The delivery forwarder: who gets through, and that nothing is swallowed on the way to sleep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from tests.standins.waiting import until

from mvm.guest.forwarder import DeliveryForwarder


class Service:
    """Stands in for OpenClaw: answers each line in capitals."""

    def __init__(self) -> None:
        self.server: asyncio.Server | None = None
        self.port = 0
        self.peers: list[str] = []

    async def start(self, port: int = 0) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername")[0])
        try:
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def forwarder(service: Service) -> AsyncIterator[DeliveryForwarder]:
    forwarder = DeliveryForwarder(host="127.0.0.1", port=0, sources=["127.0.0.3"], target_port=service.port)
    await forwarder.start()
    yield forwarder
    await forwarder.close()


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, source: str = "127.0.0.3") -> Caller:
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)))

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line)
        return await asyncio.wait_for(self.reader.readline(), 5)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_the_gateway_reaches_the_service_as_a_local_caller(
    forwarder: DeliveryForwarder, service: Service
) -> None:
    caller = await Caller.connect(forwarder.port)
    assert await caller.ask(b"hello\n") == b"HELLO\n"
    assert forwarder.in_flight == 1
    assert service.peers == ["127.0.0.1"]
    await caller.close()
    await until(lambda: forwarder.in_flight == 0, what="the delivery's end")
    assert forwarder.last_busy_at is not None


async def test_nobody_else_gets_through(forwarder: DeliveryForwarder, service: Service) -> None:
    caller = await Caller.connect(forwarder.port, source="127.0.0.4")
    with suppress(ConnectionError):
        assert await caller.ask(b"hello\n") == b""
    assert service.peers == []
    caller.writer.close()


async def test_a_changed_list_of_callers_counts_at_once(forwarder: DeliveryForwarder, service: Service) -> None:
    forwarder.configure(host="127.0.0.1", sources=["127.0.0.5"], target_port=service.port)
    caller = await Caller.connect(forwarder.port, source="127.0.0.5")
    assert await caller.ask(b"x\n") == b"X\n"
    await caller.close()


async def test_a_delivery_waits_for_a_service_that_still_starts(service: Service) -> None:
    port = service.port
    await service.stop()
    forwarder = DeliveryForwarder(host="127.0.0.1", port=0, sources=["127.0.0.3"], target_port=port)
    await forwarder.start()
    caller = await Caller.connect(forwarder.port)
    asking = asyncio.create_task(caller.ask(b"early\n"))
    await until(lambda: forwarder.in_flight == 1, what="the delivery's arrival")
    await service.start(port)
    assert await asking == b"EARLY\n"
    await caller.close()
    await forwarder.close()


async def test_a_service_that_never_starts_ends_the_delivery(service: Service) -> None:
    await service.stop()
    forwarder = DeliveryForwarder(
        host="127.0.0.1", port=0, sources=["127.0.0.3"], target_port=service.port, connect_seconds=0.1
    )
    await forwarder.start()
    caller = await Caller.connect(forwarder.port)
    assert await asyncio.wait_for(caller.reader.read(), 5) == b""
    await until(lambda: forwarder.in_flight == 0, what="the delivery's end")
    await caller.close()
    await forwarder.close()


async def test_an_end_of_one_direction_is_passed_on(forwarder: DeliveryForwarder) -> None:
    caller = await Caller.connect(forwarder.port)
    caller.writer.write(b"last\n")
    caller.writer.write_eof()
    assert await asyncio.wait_for(caller.reader.read(), 5) == b"LAST\n"
    await caller.close()


async def test_large_data_passes_whole_with_a_slow_reader(forwarder: DeliveryForwarder) -> None:
    caller = await Caller.connect(forwarder.port)
    line = b"a" * 60_000 + b"\n"

    async def send() -> None:
        for _ in range(100):
            caller.writer.write(line)
            await caller.writer.drain()
        caller.writer.write_eof()

    sending = asyncio.create_task(send())
    got = 0
    while data := await asyncio.wait_for(caller.reader.read(4096), 10):
        got += len(data)
    await sending
    assert got == 100 * len(line)
    await caller.close()


async def test_sleep_waits_for_what_is_open_and_lets_nobody_in(forwarder: DeliveryForwarder) -> None:
    caller = await Caller.connect(forwarder.port)
    await caller.ask(b"x\n")
    assert not await forwarder.close_for_sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        await Caller.connect(forwarder.port)
    assert await caller.ask(b"still served\n") == b"STILL SERVED\n"
    closing = asyncio.create_task(forwarder.close_for_sleep(5))
    await caller.close()
    assert await closing


async def test_after_an_abandoned_sleep_callers_get_in_again(forwarder: DeliveryForwarder) -> None:
    port = forwarder.port
    assert await forwarder.close_for_sleep(1)
    await forwarder.reopen()
    caller = await Caller.connect(port)
    assert await caller.ask(b"x\n") == b"X\n"
    await caller.close()


async def test_changes_are_told(service: Service) -> None:
    seen: list[int] = []
    forwarder = DeliveryForwarder(
        host="127.0.0.1",
        port=0,
        sources=["127.0.0.3"],
        target_port=service.port,
        on_change=lambda: seen.append(forwarder.in_flight),
    )
    await forwarder.start()
    caller = await Caller.connect(forwarder.port)
    await caller.ask(b"x\n")
    await caller.close()
    await until(lambda: seen == [1, 0], what="both changes")
    await forwarder.close()
