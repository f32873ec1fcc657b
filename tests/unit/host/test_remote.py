"""The network API: who is let in, how much they may ask, and what they are told."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.host.live_agent import opened_agent

from mvm.host.api import ApiServer, Call, Params, Request
from mvm.host.api_requests import REQUESTS
from mvm.host.autostart import ensure_agent
from mvm.host.daemon import run, serve
from mvm.host.endpoints import Endpoint
from mvm.host.remote import BURST, Identity, RemoteListener
from mvm.host.remote_client import RemoteClient
from mvm.model.errors import MvmError, NotFound, QuotaExceeded, Refused, TimedOut, Unavailable
from mvm.security.certificates import Authority, write_client
from mvm.security.identities import client_context
from mvm.wire.frames import FrameError, read_frame, write_frame

LOOPBACK = Endpoint("127.0.0.1", 0)
LIMIT = 10.0
DESIRED = {"schema_version": 1, "node_id": "local", "tenants": []}


class Nothing(Params):
    pass


@dataclass
class Desk:
    """What the requests of these tests work on."""

    actors: list[tuple[str, bool]] = field(default_factory=list)


async def greet(desk: Desk, params: Nothing, call: Call) -> dict[str, Any]:
    desk.actors.append((call.actor, call.remote))
    return {"actor": call.actor}


@dataclass
class Remote:
    """A listening agent, and the certificates that it goes by."""

    authority: Authority
    directory: Path
    desk: Desk
    endpoint: Endpoint = LOOPBACK
    time: float = 0.0
    listener: RemoteListener | None = None

    def identity(self, name: str = "alice", authority: Authority | None = None) -> Path:
        """A client's identity file; of another authority where one is given."""
        return write_client(self.directory / f"out-{name}", (authority or self.authority).issue(name))

    def client(self, identity: Path) -> RemoteClient:
        return RemoteClient(self.endpoint, identity, connect_timeout=LIMIT)

    @contextlib.asynccontextmanager
    async def connected(
        self, context: ssl.SSLContext
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self.endpoint.host, self.endpoint.port, ssl=context)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def listening(directory: Path, **options: Any) -> AsyncIterator[Remote]:
    authority = Authority(directory / "state")
    authority.init()
    desk = Desk()
    remote = Remote(authority, directory, desk)
    api = ApiServer({"Greet": Request(Nothing, greet)}, desk)
    listener = RemoteListener(api, Identity(directory / "state"), monotonic=lambda: remote.time, **options)
    remote.listener, remote.endpoint = listener, await listener.start(LOOPBACK)
    try:
        yield remote
    finally:
        await api.close()
        await listener.close()


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[Remote]:
    async with listening(tmp_path) as found:
        yield found


async def test_the_name_in_the_certificate_is_who_asks(remote: Remote) -> None:
    assert await remote.client(remote.identity("alice")).call("Greet") == {"actor": "alice"}
    assert remote.desk.actors == [("alice", True)]


def no_certificate(remote: Remote) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def foreign_authority(remote: Remote) -> ssl.SSLContext:
    foreign = Authority(remote.directory / "foreign")
    foreign.init()
    return trusting_anybody(remote.identity("alice", foreign))


def expired(remote: Remote) -> ssl.SSLContext:
    past = Authority(remote.directory / "state", now=lambda: datetime.now(UTC) - timedelta(days=91))
    return trusting_anybody(remote.identity("alice", past))


def for_servers_only(remote: Remote) -> ssl.SSLContext:
    return trusting_anybody(remote.authority.directory / "agent.pem")


def revoked(remote: Remote) -> ssl.SSLContext:
    context = client_context(remote.identity("alice"))
    remote.authority.revoke("alice")
    return context


def replaced(remote: Remote) -> ssl.SSLContext:
    context = client_context(remote.identity("alice"))
    remote.identity("alice")
    return context


def good(remote: Remote) -> ssl.SSLContext:
    return client_context(remote.identity("alice"))


def tls_1_2(remote: Remote) -> ssl.SSLContext:
    context = client_context(remote.identity("alice"))
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def trusting_anybody(identity: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(identity)
    return context


@pytest.mark.parametrize(
    ("made", "let_in"),
    [
        (no_certificate, False),
        (foreign_authority, False),
        (expired, False),
        (for_servers_only, False),
        (revoked, False),
        (replaced, False),
        (tls_1_2, False),
        (good, True),
    ],
)
async def test_only_a_valid_certificate_of_a_client_is_let_in(remote: Remote, made: Any, let_in: bool) -> None:
    context = made(remote)
    try:
        async with remote.connected(context) as (reader, writer):
            await write_frame(writer, "Greet")
            found: object = await read_frame(reader)
    except (OSError, FrameError) as error:
        found = error
    assert (found == {"GreetResult": {"actor": "alice"}}) is let_in
    assert bool(remote.desk.actors) is let_in


async def test_a_client_is_told_what_is_wrong_with_its_certificate(remote: Remote) -> None:
    old = remote.identity("alice", Authority(remote.directory / "state", now=lambda: datetime(2020, 1, 1, tzinfo=UTC)))
    with pytest.raises(Refused, match="has expired"):
        await remote.client(old).call("Greet")
    gone = remote.identity("bob")
    remote.authority.revoke("bob")
    with pytest.raises(Refused, match="revoked or replaced"):
        await remote.client(gone).call("Greet")
    stranger = Authority(remote.directory / "foreign")
    stranger.init()
    with pytest.raises(Refused, match="is not the one that"):
        await remote.client(remote.identity("carol", stranger)).call("Greet")
    with pytest.raises(Unavailable, match=r"does not accept the certificate in .*agent\.pem"):
        await remote.client(remote.authority.directory / "agent.pem").call("Greet")
    with pytest.raises(NotFound) as caught:
        await remote.client(remote.directory / "client.pem").call("Greet")
    assert "MVM_CERTS" in (caught.value.hint or "")


async def test_an_agent_that_is_not_there_is_unreachable(remote: Remote) -> None:
    client = remote.client(remote.identity())
    assert remote.listener is not None
    await remote.listener.close()
    with pytest.raises(Unavailable, match="no agent can be reached at tls://127"):
        await client.call("Greet")


async def test_a_burst_is_answered_and_one_more_is_not_until_time_has_passed(remote: Remote) -> None:
    async with remote.connected(good(remote)) as (reader, writer):

        async def ask() -> dict[str, Any]:
            await write_frame(writer, "Greet")
            found = await read_frame(reader)
            assert isinstance(found, dict)
            return found

        answers = [await ask() for _ in range(BURST)]
        assert all("GreetResult" in answer for answer in answers)
        assert (await ask())["Error"]["code"] == 429
        remote.time += 0.1
        assert "GreetResult" in await ask()
        assert (await ask())["Error"]["code"] == 429
        async with remote.connected(client_context(remote.directory / "out-alice/client.pem")) as (other, to_other):
            await write_frame(to_other, "Greet")
            assert await read_frame(other) == {"GreetResult": {"actor": "alice"}}


async def test_a_connection_too_many_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    async with listening(tmp_path, max_connections=1) as remote:
        client = remote.client(remote.identity())
        async with remote.connected(client_context(tmp_path / "out-alice/client.pem")) as (reader, writer):
            await write_frame(writer, "Greet")
            await read_frame(reader)
            with pytest.raises(QuotaExceeded, match="1 connections from the network"):
                await client.call("Greet")
            await write_frame(writer, "Greet")
            assert await read_frame(reader) == {"GreetResult": {"actor": "alice"}}


async def test_a_rotation_counts_from_the_next_connection_on(remote: Remote) -> None:
    identity = remote.identity()

    async def shown() -> bytes | None:
        async with remote.connected(client_context(identity)) as (reader, writer):
            await write_frame(writer, "Greet")
            await read_frame(reader)
            return bytes(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))

    before = await shown()
    remote.authority.rotate()
    assert await shown() != before
    remote.authority.rotate(authority=True)
    with pytest.raises(ssl.SSLCertVerificationError):
        await shown()
    identity = remote.identity()
    assert await remote.client(identity).call("Greet") == {"actor": "alice"}
    (remote.authority.directory / "agent.pem").write_text("damaged")
    assert await remote.client(identity).call("Greet") == {"actor": "alice"}  # by the one that it has


async def test_what_is_no_handshake_disturbs_nobody(remote: Remote) -> None:
    _reader, writer = await asyncio.open_connection(remote.endpoint.host, remote.endpoint.port)
    writer.write(b'\x00\x00\x00\x07"Greet"' + b"\xff" * 2000)
    assert await asyncio.wait_for(_reader.read(), LIMIT) is not None
    writer.close()
    assert await remote.client(remote.identity()).call("Greet") == {"actor": "alice"}
    assert remote.desk.actors == [("alice", True)]


async def test_those_who_show_no_certificate_take_up_a_bounded_room(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvm.host.remote.MAX_HANDSHAKES", 1)
    where = (remote.endpoint.host, remote.endpoint.port)
    silent, to_silent = await asyncio.open_connection(*where)
    turned_away, to_turned_away = await asyncio.open_connection(*where)
    assert await asyncio.wait_for(turned_away.read(), LIMIT) == b""
    to_silent.write(b"no handshake")
    await asyncio.wait_for(silent.read(), LIMIT)
    assert await remote.client(remote.identity()).call("Greet") == {"actor": "alice"}
    for writer in (to_silent, to_turned_away):
        writer.close()


async def test_an_agent_that_shall_listen_without_certificates_does_not_start(tmp_path: Path) -> None:
    async with opened_agent() as agent:
        locations = dataclasses.replace(agent.host.locations, state_dir=tmp_path, listen=LOOPBACK)
    with pytest.raises(NotFound) as caught:
        await serve(locations)
    assert "mvm agent certs init" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


async def test_an_address_that_cannot_be_had_is_told(remote: Remote, tmp_path: Path) -> None:
    second = RemoteListener(ApiServer({}, None), Identity(tmp_path / "state"))
    with pytest.raises(MvmError, match=f"the agent cannot listen on {remote.endpoint}"):
        await second.start(remote.endpoint)
    await second.close()


async def test_a_whole_agent_answers_from_the_network(tmp_path: Path) -> None:
    async with opened_agent() as agent:
        host = agent.host
        shutil.rmtree(host.locations.run_dir / "agent.sock", ignore_errors=True)
        host.locations = dataclasses.replace(host.locations, listen=LOOPBACK, production=True)
        authority = Authority(host.locations.state_dir)
        authority.init()
        identity = write_client(tmp_path, authority.issue("alice"))
        work = asyncio.create_task(run(host, ApiServer(REQUESTS, host), Identity(host.locations.state_dir)))
        await asyncio.wait_for(host.serving.wait(), LIMIT)
        assert host.listens is not None
        endpoint = Endpoint.parse(host.listens, "listen", "test")
        settings = dataclasses.replace(host.locations, agent=endpoint, certs_dir=identity.parent)
        client = await ensure_agent(settings)
        assert (await client.call("NodeInfo"))["listen"] == str(endpoint)
        await client.call("TenantCreate", {"tenant_id": "erin"})
        events = [event async for event in client.events(tenant_id="erin")]
        assert {event["actor"] for event in events} == {"alice"}
        with pytest.raises(Refused, match="in production mode"):
            await client.call("Reconcile", {"desired": DESIRED})
        assert "actions" in await agent.call("Reconcile", desired=DESIRED)
        await client.call("Shutdown")
        await asyncio.wait_for(work, LIMIT)
        with pytest.raises((Unavailable, TimedOut)):
            await client.call("NodeInfo")
