"""Commands run on somebody's behalf, and the guest's sockets."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from mvm.guest import commands, processes
from mvm.guest.channel import UnixChannel, open_channel
from mvm.guest.commands import CommandError, Outcome
from mvm.guest.paths import GuestPaths, write_atomically


async def run(*argv: str, stdin: bytes = b"", seconds: float = 20, keep_bytes: int = 1000) -> Outcome:
    return await commands.run(
        argv,
        environment={"PATH": os.environ["PATH"]},
        directory="/",
        stdin=stdin,
        seconds=seconds,
        keep_bytes=keep_bytes,
    )


async def test_output_status_and_input_are_passed_on() -> None:
    done = await run("/bin/sh", "-c", "cat; echo no >&2; exit 7", stdin=b"yes")
    assert (done.status, done.stdout, done.stderr) == (7, b"yes", b"no\n")
    assert (done.truncated, done.timed_out) == (False, False)


async def test_no_shell_reads_the_arguments() -> None:
    assert (await run("echo", "$HOME; rm -rf nothing", "`id`")).stdout == b"$HOME; rm -rf nothing `id`\n"


async def test_a_signal_is_a_negative_status() -> None:
    assert (await run("/bin/sh", "-c", "kill -9 $$")).status == -9


async def test_a_command_that_does_not_read_and_talks_much_ends_all_the_same() -> None:
    done = await run(
        "/bin/sh", "-c", "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2", stdin=b"x" * 1_000_000
    )
    assert (done.status, len(done.stdout), len(done.stderr), done.truncated) == (0, 1000, 1000, True)


async def test_what_is_left_in_the_background_ends_with_the_command() -> None:
    done = await run("/bin/sh", "-c", "(trap '' TERM; sleep 600) & echo $!")
    assert (done.status, done.timed_out) == (0, False)
    left = processes.read(int(done.stdout))
    assert left is None or left.ended


async def test_what_hides_in_a_session_of_its_own_holds_nobody_up() -> None:
    done = await run("/bin/sh", "-c", "setsid sleep 600 & echo $!; sleep 0.1")
    assert (done.status, done.timed_out) == (0, False)
    hidden = processes.identity_of(int(done.stdout))
    assert hidden is not None, "it is the supervisor who ends it, with the agent"
    assert processes.send(hidden, signal.SIGKILL)


async def test_a_late_command_is_ended_although_it_does_not_listen() -> None:
    done = await run("/bin/sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.05; done", seconds=0.3)
    assert done.timed_out
    assert done.status == -9
    assert processes.identity_of(int(done.stdout)) is None


async def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="'/nowhere/tool' cannot be started: No such file"):
        await run("/nowhere/tool")


async def test_cancelling_ends_the_command() -> None:
    marker = Path(tempfile.mkdtemp(prefix="mvm-"))
    task = asyncio.create_task(run("/bin/sh", "-c", f"echo $$ > {marker}/pid; sleep 600", seconds=600))
    while not (marker / "pid").exists() or not (marker / "pid").read_text().strip():
        await asyncio.sleep(0.01)
    pid = int((marker / "pid").read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes.identity_of(pid) is None
    shutil.rmtree(marker)


async def test_guest_and_host_find_each_others_ports() -> None:
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))
    channel = UnixChannel(directory)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    (directory / "guest_52.sock").touch()  # what a dead agent left
    guest = await channel.listen(52, echo)
    host = await asyncio.start_unix_server(echo, str(directory / "host_53.sock"))
    assert (directory / "guest_52.sock").stat().st_mode & 0o777 == 0o600
    guest_side = asyncio.open_unix_connection(str(directory / "guest_52.sock"))
    for connecting in (guest_side, channel.connect(53)):
        reader, writer = await connecting
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()
    guest.close()
    host.close()
    with pytest.raises(OSError, match="No such file"):
        await channel.connect(99)
    shutil.rmtree(directory)


async def test_a_path_too_long_for_a_socket_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"bytes and may have 107; use a shorter run directory"):
        await UnixChannel(tmp_path / ("x" * 100)).connect(53)


def test_a_guest_without_a_channel_is_told() -> None:
    with pytest.raises(ValueError, match="MVM_CHANNEL_DIR is not set"):
        open_channel({"MVM_GUEST_ROOT": "/somewhere"})


def test_a_machine_of_its_own_has_the_channel_in_its_place() -> None:
    assert isinstance(open_channel({}), UnixChannel)


def test_the_root_has_to_be_absolute() -> None:
    with pytest.raises(ValueError, match="MVM_GUEST_ROOT has to be an absolute path"):
        GuestPaths.from_environment({"MVM_GUEST_ROOT": "here"})
    assert GuestPaths.from_environment({}).owns_machine


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
