"""The client says to Firecracker what its table says, and of Firecracker what went wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import ValidationError

from mvm.model.errors import TimedOut, Unavailable
from mvm.runtime.firecracker import api
from mvm.runtime.firecracker.client import Client, Ended, FirecrackerError, fault_message
from mvm.runtime.firecracker.versions import Version, features


@dataclass
class Answering:
    """Something that answers on a socket, and what it was asked."""

    socket: Path
    status: int = 204
    body: bytes = b""
    seconds: float = 0.0
    asked: list[tuple[str, str, object]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.asked.append((request.method, request.path, json.loads(text) if text else None))
        await asyncio.sleep(self.seconds)
        return web.Response(status=self.status, body=self.body, content_type="application/json")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Client]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket)).start()
        try:
            async with Client(self.socket, who="alice/workers/i-1") as client:
                yield client
        finally:
            await runner.cleanup()


@pytest.fixture
def firecracker(short_directory: Path) -> Answering:
    return Answering(short_directory / "api.sock")


DRIVE = api.Drive(
    drive_id="data", path_on_host="data.img", is_root_device=False, is_read_only=False, cache_type="Writeback"
)


async def test_a_request_has_its_path_and_its_fields_and_no_other(firecracker: Answering) -> None:
    async with firecracker.served() as client:
        await client.tell(api.PUT_DRIVE, DRIVE)
    assert firecracker.asked == [
        (
            "PUT",
            "/drives/data",
            {
                "drive_id": "data",
                "path_on_host": "data.img",
                "is_root_device": False,
                "is_read_only": False,
                "cache_type": "Writeback",
            },
        )
    ]


async def test_what_a_call_does_not_carry_is_not_sent(firecracker: Answering) -> None:
    async with firecracker.served() as client:
        with pytest.raises(TypeError):
            await client.tell(api.PATCH_VM, DRIVE)
        with pytest.raises(ValueError, match="more than"):
            await client.tell(api.PUT_LOGGER, api.Logger(log_path="x" * 60_000, level="Warning", show_level=True))
    assert firecracker.asked == []


@pytest.mark.parametrize("name", ["a-b", "", "a b", "é"])
def test_the_id_of_a_device_is_letters_digits_and_underscores(name: str) -> None:
    with pytest.raises(ValidationError):
        api.NetworkOverride(iface_id=name, host_dev_name="tap0")


async def test_a_refusal_is_told_with_its_reason(firecracker: Answering) -> None:
    firecracker.status, firecracker.body = 400, b'{"fault_message": "The vCPU number is invalid!"}'
    async with firecracker.served() as client:
        with pytest.raises(FirecrackerError, match=r"PATCH /vm .* The vCPU number is invalid!") as refused:
            await client.tell(api.PATCH_VM, api.VmState(state="Paused"))
    assert refused.value.fault_message == "The vCPU number is invalid!"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"fault_message": "bad\\u0007\\nvalue"}', "bad  value"),
        (b"no JSON", "no JSON"),
        (b"", "it gives no reason"),
        (b"[1]", "[1]"),
        (b"\xff" * 1000, "\ufffd" * 500),
    ],
)
def test_a_reason_is_printable_and_bounded(content: bytes, said: str) -> None:
    assert fault_message(content) == said


async def test_a_success_of_another_kind_is_none(firecracker: Answering) -> None:
    firecracker.status = 200
    async with firecracker.served() as client:
        with pytest.raises(FirecrackerError):
            await client.tell(api.PATCH_VM, api.VmState(state="Paused"))


async def test_a_version_is_negotiated(firecracker: Answering) -> None:
    firecracker.status, firecracker.body = 200, b'{"firecracker_version": "1.16.1", "later": 1}'
    async with firecracker.served() as client:
        version, able = await client.negotiate()
    assert version == Version(1, 16, 1)
    assert able == features(version)
    assert firecracker.asked == [("GET", "/version", None)]


@pytest.mark.parametrize("body", [b'{"firecracker_version": "1.14.3"}', b'{"firecracker_version": "?"}', b"{}", b"x"])
async def test_a_version_that_is_too_old_or_none_is_refused(firecracker: Answering, body: bytes) -> None:
    firecracker.status, firecracker.body = 200, body
    async with firecracker.served() as client:
        with pytest.raises(Unavailable):
            await client.negotiate()


async def test_nobody_at_the_socket_is_said(short_directory: Path) -> None:
    async with Client(short_directory / "api.sock", who="i-1") as client:
        with pytest.raises(Ended):
            await client.tell(api.PATCH_VM, api.VmState(state="Paused"))
        with pytest.raises(Ended, match="does not listen"):
            await client.wait_until_listening(seconds=0.05)


async def test_one_that_begins_to_listen_is_waited_for(firecracker: Answering) -> None:
    firecracker.status, firecracker.body = 200, b'{"firecracker_version": "1.16.1"}'
    async with Client(firecracker.socket, who="i-1") as early:
        waiting = asyncio.create_task(early.wait_until_listening())
        await asyncio.sleep(0)
        async with firecracker.served():
            await asyncio.wait_for(waiting, 5)


async def test_silence_has_an_end(firecracker: Answering) -> None:
    firecracker.seconds = 5.0
    async with firecracker.served() as client:
        with pytest.raises(TimedOut):
            await client.tell(api.PATCH_VM, api.VmState(state="Paused"), seconds=0.05)


async def test_a_socket_deep_below_is_reached(short_directory: Path) -> None:
    deep = short_directory / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    served = Answering(short_directory / "api.sock", status=200, body=b'{"firecracker_version": "1.17.0-dev"}')
    async with served.served():
        served.socket.rename(deep / "api.sock")
        async with Client(deep / "api.sock", who="i-1") as client:
            assert (await client.negotiate())[0] == Version(1, 17, 0, "-dev")
