"""Starting a QEMU with nothing but open files, as a user of its own, bounded; and leaving none behind."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mvm.drives.table import Drive, Mode
from mvm.guest import processes
from mvm.guest.processes import Identity, Process
from mvm.model.errors import Conflict, MvmError, Unavailable
from mvm.runtime import bounds, spawning, vsock_link
from mvm.runtime.base import ChannelKind, Machine
from mvm.runtime.qemu import own_user
from mvm.runtime.qemu.command import TCG_CODE_MIB, Descriptors, Hardware, command
from mvm.runtime.qemu.files import Files
from mvm.runtime.records import Record

log = logging.getLogger(__name__)

MARKER = "MVM_MACHINE"
"""Variable that names the run directory of the instance, by which its QEMU is known even without a record."""
OVERHEAD_MIB = 192
"""Of QEMU itself; measured: 60 MiB beside guest memory and translated code."""
MAX_OPEN_FILES = 256
KILL_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Qemu:
    """Which QEMU is run, and how it is confined."""

    binary: str
    sandbox: bool


def memory_bytes(mem_mib: int) -> int:
    """What a machine of that size may use in all: its memory, which is a file's pages, and QEMU's own."""
    return (mem_mib + TCG_CODE_MIB + OVERHEAD_MIB) << 20


@contextmanager
def opened(
    hardware: Hardware, files: Files, drives: Mapping[Drive, Path], ram: int, tap: int | None
) -> Iterator[Descriptors]:
    """Everything that a QEMU of this instance works with, open; closed here at the end of the block.

    `ram` and `tap` are given in; they are closed too, also when this fails.
    """
    with ExitStack() as stack:
        stack.callback(os.close, ram)
        if tap is not None:
            stack.callback(os.close, tap)
        files.check_lengths()
        yield Descriptors(
            monitor=_listening(stack, files.monitor),
            channel=_channel(stack, hardware, files),
            console=_listening(stack, files.console),
            ram=ram,
            kernel=_open(stack, hardware.kernel, os.O_RDONLY, "kernel"),
            initrd=_open(stack, hardware.initrd, os.O_RDONLY, "initial RAM disk"),
            drives={drive.serial: _open_drive(stack, path, drive) for drive, path in drives.items()},
            tap=tap,
        )


def _listening(stack: ExitStack, path: Path) -> int:
    """A Unix socket that only this user can connect to, and that connections wait on from now."""
    path.unlink(missing_ok=True)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(8)
    return listener.fileno()


def _channel(stack: ExitStack, hardware: Hardware, files: Files) -> int:
    if hardware.channel is ChannelKind.VSOCK:
        return _open(stack, vsock_link.DEVICE, os.O_RDWR, "kernel's device for vsock")
    return _listening(stack, files.mux)


def _open_drive(stack: ExitStack, path: Path, drive: Drive) -> tuple[int, ...]:
    """What is written is locked, by the open file that QEMU inherits: until that very QEMU has ended, however it does.

    Two machines on one file system would destroy it.
    """
    what = f"image of drive {drive.serial}"
    reading = _open(stack, path, os.O_RDONLY, what)
    if drive.mode is Mode.READ_ONLY:
        return (reading,)
    writing = _open(stack, path, os.O_RDWR, what)
    try:
        fcntl.flock(writing, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"another machine uses '{path}'", hint="end it: `fuser -v` with that path names it") from None
    return (reading, writing)


def drive_in_use(files: Files) -> bool:
    """Whether some process still has the data drive, also one of which all other traces were lost."""
    try:
        descriptor = os.open(files.data, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _open(stack: ExitStack, path: Path, mode: int, what: str) -> int:
    try:
        descriptor = os.open(path, mode | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"the {what} cannot be opened: {path}: {error.strerror}") from error
    stack.callback(os.close, descriptor)
    return descriptor


def launch(
    qemu: Qemu, machine: Machine, files: Files, hardware: Hardware, descriptors: Descriptors, *, incoming: bool
) -> Identity:
    """Start QEMU, recorded; `bound` comes next. Raises `Unavailable`; then nothing runs."""
    arguments = command(
        qemu.binary,
        hardware,
        descriptors,
        name=machine.ref.instance_id,
        mac=machine.mac,
        sandbox=qemu.sandbox,
        incoming=incoming,
        cid=vsock_link.cid_of(machine.ref.instance_id) if hardware.channel is ChannelKind.VSOCK else None,
    )
    identity = spawning.spawn(
        [*own_user.words(machine.uid, device=hardware.accelerator.device), *arguments],
        environment={"PATH": os.defpath, MARKER: str(files.run_dir)},
        directory=Path("/"),
        output=files.output,
        held=descriptors.all(),
    )
    spawning.limit(identity.pid, open_files=MAX_OPEN_FILES, file_bytes=_longest_file(descriptors))
    Record(identity=identity).write(files.record)
    return identity


def _longest_file(descriptors: Descriptors) -> int:
    """Bytes of the longest file that a QEMU is given: its memory or a drive. What it writes of its devices is less."""
    drives = (number for numbers in descriptors.drives.values() for number in numbers)
    return max(os.fstat(number).st_size for number in (descriptors.ram, *drives))


def bound(machine: Machine, files: Files, identity: Identity) -> None:
    """Put a QEMU that starts into a control group of its own.

    For another thread, while QEMU starts: the kernel lets every processor pass by before it moves a process, 10 ms.
    """
    held = bounds.apply(
        identity.pid,
        name=f"{machine.ref.instance_id}-{identity.pid}",
        vcpus=machine.vcpus,
        memory_bytes=memory_bytes(machine.mem_mib),
    )
    log.debug("%s: QEMU is %s", machine.ref, held.note)
    Record(identity=identity, groups=held.groups).write(files.record)


def find(files: Files) -> Identity | None:
    """The QEMU of this instance: by its record, else (the agent died right after starting it) by its marker."""
    recorded = Record.process(files.record)
    if recorded is not None and processes.alive(recorded) and _is_of(recorded.pid, files):
        return recorded
    if not any(path.exists() for path in files.sockets):  # they are made before and removed after a process
        return None
    found = members(files)
    return found[0].identity if found else None


def members(files: Files) -> list[Process]:
    """Every process that was started as the machine of this instance and has not ended."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and _is_of(int(name), files):
            process = processes.read(int(name))
            if process is not None and not process.ended:
                found.append(process)
    return found


def _is_of(pid: int, files: Files) -> bool:
    return processes.variable_of(pid, MARKER) == str(files.run_dir)


async def end_all(files: Files, *, who: str) -> None:
    """No process of the instance is left afterwards. Raises `MvmError` when one cannot be ended."""
    record = Record.load(files.record)
    groups = record.groups if record else ()
    if not groups:  # or its agent did not get as far as writing them down
        known = {record.identity} if record else {process.identity for process in members(files)}
        groups = tuple(group for identity in known for group in bounds.groups_of(identity.pid))
    left = await processes.kill_all(lambda: members(files), KILL_SECONDS)
    if left:
        pids = ", ".join(str(process.identity.pid) for process in left)
        raise MvmError(f"the QEMU of {who} cannot be ended: {pids}", hint="it waits for a device or a file system")
    if record is not None:
        spawning.reap(record.identity)
    await bounds.remove(groups)
    files.forget_process()
