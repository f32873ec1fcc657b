"""The multiplexer's behaviour: connections that do not disturb each other, and streams that break off anywhere."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.wire.mux_world import CLOSED_PORT, RawHost, World, virtual, works

from mvm.wire.mux_connection import LINGER_SECONDS, WINDOW
from mvm.wire.mux_frames import HEADER_BYTES, MAX_PAYLOAD, PADDING, Desynchronised, Inbox, Kind, encode
from mvm.wire.mux_session import MAX_INCOMING

BIG = bytes(range(256)) * 4096
HOST_ID, GUEST_ID = 0x1001, 0x1002


@virtual
async def test_both_sides_open_connections(world: World) -> None:
    await works(world)
    reader, writer = world.connect_from_guest()
    writer.write(b"before it is accepted\n")
    host_reader, host_writer = await world.at_host.get()
    assert await host_reader.readline() == b"before it is accepted\n"
    host_writer.write(b"well\n")
    assert await reader.readline() == b"well\n"


@virtual
@pytest.mark.parametrize("piece", [1, 7, 65536])
async def test_a_megabyte_arrives_whole_in_whatever_pieces_the_stream_carries_it(piece: int, world: World) -> None:
    world.piece = piece
    (reader, writer), (guest_reader, guest_writer) = await world.joined()
    content = BIG if piece > 1 else BIG[: 2 * WINDOW]

    async def send(to: asyncio.StreamWriter) -> None:
        to.write(content)
        await to.drain()
        to.write_eof()

    there, back, *_ = await asyncio.gather(guest_reader.read(), reader.read(), send(writer), send(guest_writer))
    assert there == content
    assert back == content


@virtual
async def test_a_port_where_nobody_listens_is_refused(world: World) -> None:
    with pytest.raises(ConnectionRefusedError, match="nobody listens on port 99"):
        await world.connect(CLOSED_PORT)
    await works(world)


@virtual
async def test_a_connection_that_nobody_reads_holds_back_its_writer_and_nobody_else(world: World) -> None:
    (_, writer), (guest_reader, _) = await world.joined()
    writer.write(BIG)
    draining = asyncio.ensure_future(writer.drain())
    await world.settled()
    assert not draining.done()
    await works(world)
    writer.write_eof()
    assert await guest_reader.read() == BIG
    await draining


@virtual
async def test_a_stream_that_takes_nothing_holds_back_writers_who_then_take_turns(world: World) -> None:
    one, two = await world.joined(), await world.joined()
    world.host.pause_writing()
    for (_, writer), _ in (one, two):
        writer.write(BIG[: 3 * MAX_PAYLOAD])
    await world.settled()
    assert not world.to_guest
    world.held = True
    world.host.resume_writing()
    inbox = Inbox()
    inbox.feed(bytes(world.to_guest))
    order = [frame[1] for frame in iter(inbox.frame, None)]
    assert order == [order[0], order[1]] * 3
    assert order[0] != order[1]
    world.release()
    for _, (guest_reader, _) in (one, two):
        assert await guest_reader.readexactly(3 * MAX_PAYLOAD) == BIG[: 3 * MAX_PAYLOAD]


@virtual
async def test_closing_delivers_what_was_written_and_tells_a_peer_that_goes_on_writing(world: World) -> None:
    (_, writer), (guest_reader, guest_writer) = await world.joined()
    writer.write(BIG)
    writer.close()
    assert await guest_reader.read() == BIG
    await writer.wait_closed()
    guest_writer.write(b"too late")
    with pytest.raises(ConnectionResetError):
        await guest_writer.wait_closed()


@virtual
async def test_whoever_closes_still_takes_what_the_peer_writes_before_it_reads(world: World) -> None:
    (_, writer), (guest_reader, guest_writer) = await world.joined()
    writer.write(BIG)
    writer.close()
    guest_writer.write(BIG)
    await guest_writer.drain()
    assert await guest_reader.read() == BIG


@virtual
async def test_a_closed_connection_waits_for_a_reader_only_so_long(world: World) -> None:
    (_, writer), (guest_reader, _) = await world.joined()
    writer.write(BIG)
    writer.close()
    began = asyncio.get_running_loop().time()
    await writer.wait_closed()
    assert asyncio.get_running_loop().time() - began == pytest.approx(LINGER_SECONDS)
    with pytest.raises(ConnectionResetError):
        await guest_reader.read()


@virtual
async def test_a_connection_that_is_aborted_is_reset_at_the_other_end(world: World) -> None:
    (_, writer), (guest_reader, _) = await world.joined()
    writer.transport.abort()
    with pytest.raises(ConnectionResetError):
        await guest_reader.read()


@virtual
async def test_a_guest_that_comes_up_later_is_found(world: World) -> None:
    world.held = True
    connecting = asyncio.ensure_future(world.connect())
    await asyncio.sleep(60)
    assert len(world.to_guest) < 1024
    world.release()
    await connecting


@virtual
async def test_a_hello_that_was_lost_is_said_again(world: World) -> None:
    world.held = True
    world.to_guest.clear()
    world.release()
    await works(world)


@virtual
async def test_a_hello_that_is_answered_late_ends_no_connection(world: World) -> None:
    world.held = True
    await asyncio.sleep(0.5)
    world.held = False
    world.guest.received(bytes(world.to_guest))
    world.to_guest.clear()
    world.carry()
    (_, writer), (guest_reader, _) = await world.joined()
    await asyncio.sleep(10)
    writer.write(b"still here\n")
    assert await guest_reader.readline() == b"still here\n"


@virtual
async def test_a_hello_said_twice_does_not_end_what_the_guest_began_after_the_first(world: World) -> None:
    world.held = True
    world.guest.received(bytes(world.to_guest))
    world.to_guest.clear()
    await asyncio.sleep(0.5)
    assert world.to_guest.startswith(PADDING)
    _, writer = world.connect_from_guest()
    world.release()
    reader, _ = await world.at_host.get()
    writer.write(b"still here\n")
    assert await reader.readline() == b"still here\n"


@virtual
async def test_what_only_looks_like_a_hello_hides_no_other(world: World) -> None:
    hello = bytes(world.to_guest)
    world.to_guest.clear()
    world.guest.received(hello[:-1] + b"\0" + hello[:30])
    world.guest.received(hello)
    await works(world)


@virtual
async def test_at_a_hello_the_guest_forgets_what_it_has_not_written_yet(world: World) -> None:
    _, (_, guest_writer) = await world.joined()
    world.held = True
    guest_writer.write(BIG)
    world.guest.received(encode(Kind.HELLO, payload=b"another host's.."))
    assert bytes(world.to_host) == encode(Kind.ACK, payload=b"another host's..")


@virtual
async def test_a_session_that_ended_opens_nothing(world: World) -> None:
    session = await world.host.session()
    world.host.end("its agent was killed")
    with pytest.raises(ConnectionResetError, match="the session has ended"):
        session.open(52, asyncio.Protocol())


FRAME = encode(Kind.DATA, HOST_ID, 0, b"half a message" * 20)


@virtual
@pytest.mark.parametrize("cut", [*range(1, HEADER_BYTES + 2), len(FRAME) - 1])
async def test_half_a_frame_of_a_former_host_hurts_nobody(cut: int, world: World) -> None:
    await works(world)
    world.host.end("its agent was killed")
    world.guest.received(FRAME[:cut])
    world.new_host()
    await works(world)


@virtual
@pytest.mark.parametrize("length", [2, MAX_PAYLOAD])
@pytest.mark.parametrize("kept", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1])
async def test_a_frame_cut_off_inside_a_running_connection_is_not_delivered(
    length: int, kept: int, world: World
) -> None:
    (_, writer), (guest_reader, _) = await world.joined()
    world.held = True
    writer.write(b"x" * length)
    world.host.end("its agent was killed")
    del world.to_guest[kept:]
    world.new_host()
    world.release()
    with pytest.raises(ConnectionResetError):
        await guest_reader.readexactly(1)
    await works(world)


@virtual
async def test_the_answer_to_a_request_that_was_given_up_reaches_no_later_connection(world: World) -> None:
    (_, writer), (guest_reader, guest_writer) = await world.joined()
    writer.write(b"question\n")
    await guest_reader.readline()
    world.held = True
    guest_writer.write(b"an answer for the former agent\n")
    world.host.end("its agent was killed")
    former = bytes(world.to_host)
    world.new_host()
    world.release()
    (reader, _), (_, guest_writer) = await world.joined()
    guest_writer.write(b"answer\n")
    assert b"former" in former
    assert await reader.readline() == b"answer\n"


@virtual
async def test_an_answer_written_after_the_session_ended_goes_nowhere(world: World) -> None:
    _, (_, guest_writer) = await world.joined()
    world.host.end("its agent was killed")
    world.new_host()
    await works(world)
    world.to_host.clear()
    guest_writer.write(b"an answer for the former agent\n")
    guest_writer.close()
    assert not world.to_host


@virtual
async def test_a_guest_that_begins_anew_is_noticed_though_it_left_half_a_frame(world: World) -> None:
    (reader, _), (_, guest_writer) = await world.joined()
    world.held = True
    guest_writer.write(b"x" * 1000)
    del world.to_host[-500:]
    world.new_guest()
    world.release()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    await works(world)


@virtual
async def test_a_stream_that_ends_ends_everything_at_once(world: World) -> None:
    (reader, _), _ = await world.joined()
    world.held = True
    world.new_host()
    waiting = asyncio.ensure_future(world.connect())
    await world.settled()
    world.host.end("the machine is gone")
    with pytest.raises(ConnectionResetError, match="the machine is gone"):
        await waiting
    with pytest.raises(ConnectionResetError):
        await world.connect()
    assert not reader.at_eof()


@virtual
async def test_a_guest_whose_host_left_opens_nothing_and_ends_what_there_was(world: World) -> None:
    _, (guest_reader, _) = await world.joined()
    world.guest.host_left()
    assert world.guest.session is None
    with pytest.raises(ConnectionResetError, match="the host has left"):
        await guest_reader.read()
    world.new_host()
    await works(world)


@virtual
@pytest.mark.parametrize("answered", [True, False], ids=["answered already", "answer not written yet"])
async def test_a_host_that_came_before_its_predecessors_end_was_noticed_gets_a_session(
    answered: bool, world: World
) -> None:
    await world.joined()
    world.host.end("its agent was killed")
    world.held = True
    world.new_host()
    world.guest.received(bytes(world.to_guest))
    world.to_guest.clear()
    if answered:
        world.release()
        await world.settled()
    world.guest.host_left()
    world.release()
    await asyncio.sleep(5)
    await works(world)


# Peers that do not keep to the rules


@virtual
async def test_more_data_than_credit_resets_that_connection_only() -> None:
    host = RawHost()
    for connection in (HOST_ID, HOST_ID + 2):
        host.guest.received(encode(Kind.OPEN, connection, 52))
        host.opened[-1].accept(asyncio.StreamReaderProtocol(asyncio.StreamReader()))
        host.opened[-1].pause_reading()
    host.frames()
    for _ in range(WINDOW // MAX_PAYLOAD):
        host.guest.received(encode(Kind.DATA, HOST_ID, 0, bytes(MAX_PAYLOAD)))
    assert host.frames() == []
    host.guest.received(encode(Kind.DATA, HOST_ID, 0, b"x"))
    assert host.frames() == [(Kind.RST, HOST_ID, 0, 0)]
    assert [connection.is_closing() for connection in host.opened] == [True, False]


@virtual
async def test_credit_for_what_was_never_sent_resets_the_connection() -> None:
    host = RawHost()
    host.guest.received(encode(Kind.OPEN, HOST_ID, 52))
    host.opened[0].accept(asyncio.StreamReaderProtocol(asyncio.StreamReader()))
    host.frames()
    host.guest.received(encode(Kind.CREDIT, HOST_ID, 1))
    assert host.frames() == [(Kind.RST, HOST_ID, 0, 0)]


@virtual
async def test_only_so_many_connections_may_be_open() -> None:
    host = RawHost()
    for number in range(MAX_INCOMING + 1):
        host.guest.received(encode(Kind.OPEN, HOST_ID + 2 * number, 52))
    assert len(host.opened) == MAX_INCOMING
    assert host.frames() == [(Kind.RST, HOST_ID + 2 * MAX_INCOMING, 0, 0)]
    host.guest.received(encode(Kind.RST, HOST_ID))
    host.guest.received(encode(Kind.OPEN, HOST_ID, 52))
    assert len(host.opened) == MAX_INCOMING + 1


@virtual
@pytest.mark.parametrize(
    "frames",
    [
        encode(Kind.OPEN, HOST_ID, 52) * 2,
        encode(Kind.OPEN, GUEST_ID, 52),
        encode(Kind.DATA, HOST_ID, 0, b"x")[:-1] + b"y",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"MV" + b"\xff" * 40,
    ],
    ids=["opened twice", "an id of ours", "damaged", "something else", "too long"],
)
async def test_what_cannot_come_ends_the_session(frames: bytes) -> None:
    host = RawHost()
    host.guest.received(frames)
    assert host.guest.session is None
    assert host.frames() == [(Kind.LOST, 0, 0, 0)]
    assert all(connection.is_closing() for connection in host.opened)


@virtual
async def test_frames_of_kinds_and_connections_that_are_not_known_mean_nothing() -> None:
    host = RawHost()
    for kind in (*Kind, 0, 77, 255):
        if kind not in (Kind.OPEN, Kind.HELLO):
            host.guest.received(encode(kind, GUEST_ID, 5, b"what"))  # type: ignore[arg-type]
    assert host.frames() == []
    assert host.guest.session is not None


@virtual
async def test_a_guest_that_breaks_every_session_is_greeted_less_and_less_often(world: World) -> None:
    for _ in range(20):
        await world.host.session()
        world.host.received(b"nonsense" * 10)
    assert asyncio.get_running_loop().time() > 60
    await works(world)


def test_padding_between_frames_means_nothing_and_completes_half_a_frame() -> None:
    inbox = Inbox()
    inbox.feed(PADDING + FRAME + PADDING)
    assert inbox.frame() == (Kind.DATA, HOST_ID, 0, FRAME[HEADER_BYTES:])
    assert inbox.frame() is None
    for cut in range(1, len(FRAME)):
        inbox.clear()
        inbox.feed(FRAME[:cut] + PADDING)
        with pytest.raises(Desynchronised):
            inbox.frame()
