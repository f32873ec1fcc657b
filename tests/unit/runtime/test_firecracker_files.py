"""What Firecracker is given on disk: where its programs are, its jail, its room, its memory files."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.runtime.qemu_machines import machine

from mvm.drives.table import CONFIG, DATA, SECRETS
from mvm.guest import processes
from mvm.model.errors import Conflict, InvalidInput, MvmError, Unavailable
from mvm.runtime import saved
from mvm.runtime.firecracker import binaries, jail, launching, makeup, memory_file, room
from mvm.runtime.firecracker.files import Files
from mvm.runtime.firecracker.jail import ControlGroups, Jail
from mvm.runtime.firecracker.room import Room, furnished
from mvm.runtime.firecracker.snapshots import SNAPSHOTS
from mvm.runtime.firecracker.versions import Version, features

MIB = 1 << 20
NOBODY = 61_099
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files are given to another user")


# Programs


def program(path: Path, says: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    path.chmod(0o755)
    return path


def installed(programs: Path, version: str) -> Path:
    directory = programs / "firecracker" / version
    program(directory / "firecracker", f"Firecracker v{version}")
    program(directory / "jailer", f"Jailer v{version}")
    return directory


def test_the_newest_installed_one_is_used_with_its_jailer(tmp_path: Path) -> None:
    for version in ("1.15.1", "1.16.1", "1.9.9"):
        installed(tmp_path, version)
    found = binaries.find(tmp_path, environ={"PATH": ""})
    assert found.firecracker == tmp_path / "firecracker/1.16.1/firecracker"
    assert found.jailer == tmp_path / "firecracker/1.16.1/jailer"
    assert found.version == Version(1, 16, 1)


def test_without_one_that_was_installed_it_is_looked_for_on_path(tmp_path: Path) -> None:
    directory = installed(tmp_path / "elsewhere", "1.16.1")
    found = binaries.find(tmp_path, environ={"PATH": str(directory)})
    assert found.firecracker == directory / "firecracker"


def test_a_variable_names_another_one(tmp_path: Path) -> None:
    installed(tmp_path, "1.16.1")
    other = program(tmp_path / "x/firecracker-v1.17.0", "Firecracker v1.17.0")
    environ = {"PATH": "", "MVM_FIRECRACKER": str(other)}
    found = binaries.find(tmp_path, environ=environ)
    assert found.firecracker == other
    assert found.jailer is None
    assert "must be the same" in found.no_jailer
    with pytest.raises(Unavailable, match="MVM_FIRECRACKER"):
        binaries.find(tmp_path, environ={"MVM_FIRECRACKER": str(tmp_path / "nothing")})


def test_without_any_it_is_said_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="not installed") as missing:
        binaries.find(tmp_path, environ={"PATH": ""})
    assert missing.value.hint is not None
    assert "mvm setup firecracker" in missing.value.hint


@pytest.mark.parametrize(("says", "status"), [("Firecracker v1.14.2", 0), ("v1.16.1", 3), ("hello", 0)])
def test_one_that_is_too_old_or_does_not_say_is_refused(tmp_path: Path, says: str, status: int) -> None:
    program(tmp_path / "firecracker/1.16.1/firecracker", says, status)
    with pytest.raises(Unavailable):
        binaries.find(tmp_path, environ={"PATH": ""})


def test_one_that_cannot_be_jailed_is_refused(tmp_path: Path) -> None:
    other = program(tmp_path / "fc", "Firecracker v1.16.1")
    with pytest.raises(Unavailable, match="'firecracker' in its name"):
        binaries.find(tmp_path, environ={"MVM_FIRECRACKER": str(other)})


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Firecracker v1.16.1\n\nexiting", Version(1, 16, 1)),
        ("1.17.0-dev", Version(1, 17, 0, "-dev")),
        ("Jailer v10.0.3", Version(10, 0, 3)),
    ],
)
def test_versions_are_read(text: str, version: Version) -> None:
    assert Version.parse(text) == version


def test_a_guest_that_was_only_paused_can_go_on_from_1_17() -> None:
    assert [features(Version.parse(v)).bare_resume for v in ("1.15.0", "1.16.1", "1.17.0-dev", "2.0.0")] == [
        False,
        False,
        True,
        True,
    ]


# The jail

V2 = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def mounts(tmp_path: Path, *, unified: str | None, old: tuple[str, ...]) -> Path:
    """A mount table of a host with these control groups."""
    lines = []
    for name in old:
        lines.append(f"32 31 0:29 / {tmp_path / name} rw - cgroup cgroup rw,{name}")
    if unified is not None:
        (tmp_path / "unified").mkdir()
        (tmp_path / "unified/cgroup.controllers").write_text(unified)
        lines.append(f"41 31 0:38 / {tmp_path / 'unified'} rw - cgroup2 cgroup2 rw")
    table = tmp_path / "mountinfo"
    table.write_text("".join(f"{line}\n" for line in lines))
    return table


def test_version_2_is_used_where_it_has_what_is_needed(tmp_path: Path) -> None:
    table = mounts(tmp_path, unified="cpuset cpu io memory pids", old=("memory", "pids", "cpu"))
    assert jail.control_groups(table) == ControlGroups(version=2, bases=(tmp_path / "unified",))


def test_version_1_is_used_where_that_is_all_there_is(tmp_path: Path) -> None:
    table = mounts(tmp_path, unified="hugetlb", old=("memory", "pids", "cpu"))
    found = jail.control_groups(table)
    assert (found.version, set(found.bases)) == (1, {tmp_path / "memory", tmp_path / "pids", tmp_path / "cpu"})
    assert tmp_path / "memory/mvm/i-0a0b0c0d" in found.of("i-0a0b0c0d")


def test_without_all_of_them_there_are_none(tmp_path: Path) -> None:
    assert jail.control_groups(mounts(tmp_path, unified=None, old=("memory",))).bases == ()


def jailed(groups: ControlGroups) -> list[str]:
    return jail.command(
        Jail(
            jailer=Path("/p/jailer"),
            executable=Path("/p/firecracker"),
            instance="i-0a0b0c0d",
            uid=NOBODY,
            base=Path("/s/jail"),
            groups=groups,
            vcpus=2,
            mem_mib=512,
            largest_file_mib=2048,
        )
    )


def options(arguments: list[str], name: str) -> list[str]:
    return [arguments[i + 1] for i, word in enumerate(arguments) if word == name]


def test_a_jail_has_a_user_a_root_a_process_namespace_and_limits_of_its_own() -> None:
    arguments = jailed(ControlGroups(version=2, bases=(Path("/g"),)))
    own, rest = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    assert own[:5] == ["/p/jailer", "--id", "i-0a0b0c0d", "--exec-file", "/p/firecracker"]
    assert options(own, "--uid") == options(own, "--gid") == [str(NOBODY)]
    assert options(own, "--chroot-base-dir") == ["/s/jail"]
    assert options(own, "--cgroup-version") == ["2"]
    assert set(options(own, "--cgroup")) == {
        f"memory.max={(512 + jail.OVERHEAD_MIB) * MIB}",
        "pids.max=2048",
        "cpu.weight=200",
    }
    assert {"--daemonize", "--new-pid-ns"} <= set(own)
    (size,) = [int(value.removeprefix("fsize=")) for value in options(own, "--resource-limit") if "fsize" in value]
    assert size > 2048 * MIB
    assert rest == ["--api-sock", "api.sock"]


def test_the_old_control_groups_are_asked_for_by_their_names() -> None:
    arguments = jailed(ControlGroups(version=1, bases=(Path("/g"),)))
    assert options(arguments, "--cgroup-version") == ["1"]
    assert {each.partition("=")[0] for each in options(arguments, "--cgroup")} == {
        "memory.limit_in_bytes",
        "pids.max",
        "cpu.shares",
    }


def test_without_control_groups_none_are_asked_for() -> None:
    assert options(jailed(ControlGroups(version=1, bases=())), "--cgroup") == []


# The room


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files.of(machine(tmp_path))


@pytest.fixture
def made(files: Files) -> Iterator[Room]:
    directory = files.room_for(Path("/p/firecracker"))
    with furnished(directory, uid=None, jailed=False) as furnishing:
        yield furnishing
    room.remove(files.jail)
    assert not files.jail.exists()


def test_the_room_is_where_the_jailer_makes_it(files: Files, made: Room) -> None:
    assert made.directory == files.state_dir / "jail/firecracker/i-0a0b0c0d/root"
    assert files.room == made.directory
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700


def test_what_is_put_into_it_is_the_same_file(files: Files, made: Room) -> None:
    files.data.write_bytes(b"data")
    made.put_drives({DATA: files.data})
    assert (made.directory / "data.img").samefile(files.data)


def test_what_is_not_there_is_named(files: Files, made: Room) -> None:
    with pytest.raises(Unavailable, match="drive config"):
        made.put_drives({CONFIG: files.config_image})


def test_what_firecracker_wrote_is_taken_whole_and_private(files: Files, made: Room) -> None:
    (made.directory / "fresh.memory").write_bytes(b"memory")
    files.make_memory()
    files.ram.write_bytes(b"older")
    made.take("fresh.memory", files.ram, mode=0o600)
    assert files.ram.read_bytes() == b"memory"
    assert stat.S_IMODE(files.ram.stat().st_mode) == 0o600
    assert not (made.directory / "fresh.memory").exists()


@pytest.mark.parametrize("kind", ["symlink", "link", "fifo", "directory"])
def test_anything_else_that_a_hostile_one_leaves_is_not_taken(files: Files, made: Room, kind: str) -> None:
    victim = files.state_dir / "victim"
    victim.write_bytes(b"somebody else's")
    left = made.directory / "fresh.memory"
    if kind == "symlink":
        left.symlink_to(victim)
    elif kind == "link":
        os.link(victim, left)
    elif kind == "fifo":
        os.mkfifo(left)
    else:
        left.mkdir()
    files.make_memory()
    with pytest.raises((MvmError, OSError)):
        made.take("fresh.memory", files.ram, mode=0o600)
    assert victim.read_bytes() == b"somebody else's"
    assert not files.ram.exists()


@as_root
def test_the_jails_user_may_write_its_data_and_nothing_else(tmp_path: Path, files: Files) -> None:
    image = tmp_path / "image"
    image.mkdir()
    for path in (files.data, files.config_image, files.secrets_image, files.state_dir / "ram", image / "vmlinux"):
        path.write_bytes(b"x")
        path.chmod(0o600)
    with furnished(files.room_for(Path("/p/firecracker")), uid=NOBODY, jailed=True) as made:
        made.put_image("vmlinux", image / "vmlinux")
        made.put_drives({DATA: files.data, SECRETS: files.secrets_image, CONFIG: files.config_image})
        made.put_memory(files.state_dir / "ram", files.state_dir / "ram")
        script = """
import os, sys
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
for name in sorted(os.listdir(".")):
    may = [letter for letter, mode in (("r", os.O_RDONLY), ("w", os.O_WRONLY)) if allowed(name, mode)]
    print(name, "".join(may))
"""
        allowed = """
def allowed(name, mode):
    try:
        os.close(os.open(name, mode | os.O_NONBLOCK))
    except PermissionError:
        return False
    except OSError:
        pass
    return True
"""
        done = subprocess.run(
            [sys.executable, "-c", f"import os\n{allowed}{script}", str(NOBODY)],
            cwd=made.directory,
            capture_output=True,
            text=True,
            check=True,
        )
    assert dict(line.split() for line in done.stdout.splitlines()) == {
        "config.img": "r",
        "data.img": "rw",
        "devices": "r",
        "log.fifo": "rw",
        "memory": "r",
        "metrics.fifo": "rw",
        "secrets.img": "r",
        "vmlinux": "r",
    }
    room.remove(files.jail)


@as_root
def test_secrets_of_another_file_system_are_mounted_and_let_go(tmp_path: Path, files: Files) -> None:
    memory = Path("/dev/shm")
    if memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system")
    elsewhere = memory / f"mvm-test-{os.getpid()}.erofs"
    elsewhere.write_bytes(b"secret")
    try:
        with furnished(files.room_for(Path("/p/firecracker")), uid=NOBODY, jailed=True) as made:
            made.put_drives({SECRETS: elsewhere})
            inside = made.directory / "secrets.img"
            assert inside.read_bytes() == b"secret"
            assert inside.stat().st_dev == elsewhere.stat().st_dev
            opened = inside.open("rb")
        with opened:
            assert opened.read() == b"secret"
        assert inside.read_bytes() == b""
        room.remove(files.jail)
        assert elsewhere.read_bytes() == b"secret"
    finally:
        elsewhere.unlink()


# The data drive


def test_a_data_drive_that_a_process_writes_is_in_use(files: Files) -> None:
    assert not launching.in_use(files.data)
    files.data.write_bytes(b"data")
    assert not launching.in_use(files.data)
    with files.data.open("r+b"):
        assert launching.in_use(files.data)
        with pytest.raises(Conflict, match="another machine"), launching.held(files.data):
            pass
    with launching.held(files.data), pytest.raises(Conflict), launching.held(files.data):
        pass


def test_only_one_at_a_time_starts_a_machine_on_a_data_drive(files: Files) -> None:
    with launching.alone(files.data):
        """There is none yet."""
    files.data.write_bytes(b"data")
    with launching.alone(files.data), pytest.raises(Conflict), launching.held(files.data):
        pass
    with launching.alone(files.data):
        pass


def test_without_leases_processes_are_looked_at(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    files.data.write_bytes(b"data")
    monkeypatch.setattr(fcntl, "fcntl", none_here)
    assert not launching.in_use(files.data)
    with files.data.open("r+b") as held:
        child = subprocess.Popen(["sleep", "60"], stdin=held)
        try:
            assert launching.in_use(files.data)
            assert [process.identity.pid for process in launching.holders(files.data)] == [child.pid]
        finally:
            child.kill()
            child.wait()


async def test_a_lost_machine_is_ended_before_its_data_is_given_away(files: Files) -> None:
    """Neither its record nor its room is left, only a process that has the data and says whose it is."""
    files.data.write_bytes(b"data")
    program_of_it = "import sys, time; held = open(sys.argv[3], 'r+b'); print(flush=True); time.sleep(60)"
    lost = subprocess.Popen(
        [sys.executable, "-c", program_of_it, "--id", files.instance, str(files.data)], stdout=subprocess.PIPE
    )
    assert lost.stdout is not None
    lost.stdout.readline()
    stranger = subprocess.Popen(["sleep", "60"])
    identity = processes.identity_of(lost.pid)
    assert identity is not None
    try:
        await launching.end_all(files, ControlGroups(version=1, bases=()), who="i")
        assert not processes.alive(identity)
        assert stranger.poll() is None
        assert not launching.in_use(files.data)
    finally:
        for process in (lost, stranger):
            process.kill()
            process.wait()
        lost.stdout.close()


def test_a_process_is_known_by_its_room(files: Files, made: Room) -> None:
    assert launching.find(files) is None
    child = subprocess.Popen(["sleep", "60"], cwd=made.directory)
    try:
        found = launching.find(files)
        assert found is not None
        assert found.pid == child.pid
    finally:
        child.kill()
        child.wait()
    assert launching.find(files) is None


# Memory


def memory(path: Path, content: dict[int, bytes], mib: int = 8) -> Path:
    with path.open("wb") as file:
        file.truncate(mib * MIB)
        for offset, data in content.items():
            file.seek(offset)
            file.write(data)
    return path


@settings(max_examples=20)
@given(
    st.dictionaries(st.integers(0, MIB), st.binary(min_size=1, max_size=40_000), max_size=4),
)
def test_the_digest_is_of_the_content_wherever_the_holes_are(
    tmp_path_factory: pytest.TempPathFactory, content: dict[int, bytes]
) -> None:
    directory = tmp_path_factory.mktemp("memory")
    sparse = memory(directory / "sparse", content, 2)
    full = directory / "full"
    full.write_bytes(sparse.read_bytes())
    assert memory_file.digest(full) == memory_file.digest(sparse)
    before = full.read_bytes()
    memory_file.make_holes(full)
    assert full.read_bytes() == before
    assert memory_file.digest(full) == memory_file.digest(sparse)


def test_what_is_clear_takes_no_room(tmp_path: Path) -> None:
    full = tmp_path / "ram"
    full.write_bytes(bytes(3 * MIB) + b"x" * 100 + bytes(MIB - 100))
    memory_file.make_holes(full)
    assert full.stat().st_blocks * 512 <= 2 * memory_file.GRAIN
    assert full.stat().st_size == 4 * MIB


@pytest.mark.parametrize("offset", [0, 100, 5 * MIB, 8 * MIB - 1])
def test_one_bit_is_noticed_wherever_it_is_and_whatever_the_file_says_of_its_time(tmp_path: Path, offset: int) -> None:
    ram = memory(tmp_path / "ram", {100: b"guest", 5 * MIB: b"guest"})
    told = memory_file.describe(ram)
    assert memory_file.holds(ram, told)
    times = ram.stat()
    with ram.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    os.utime(ram, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not memory_file.holds(ram, told)


@pytest.mark.parametrize("size", [0, 4 * MIB, 8 * MIB - 1, 9 * MIB])
def test_another_length_is_noticed(tmp_path: Path, size: int) -> None:
    ram = memory(tmp_path / "ram", {100: b"guest"})
    told = memory_file.describe(ram)
    os.truncate(ram, size)
    assert not memory_file.holds(ram, told)


def test_a_copy_that_is_the_same_holds(tmp_path: Path) -> None:
    ram = memory(tmp_path / "ram", {100: b"guest"})
    told = memory_file.describe(ram)
    copied = tmp_path / "copied"
    copied.write_bytes(ram.read_bytes())
    assert memory_file.holds(copied, told)


def test_a_base_that_gets_more_names_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = memory(tmp_path / "base", {100: b"guest"})
    os.link(base, tmp_path / "first")
    told = memory_file.describe(tmp_path / "first")
    os.link(base, tmp_path / "second")
    monkeypatch.setattr(memory_file, "digest", lambda _: "read")
    assert memory_file.holds(tmp_path / "first", told)


MADE_BY = dict.fromkeys(SNAPSHOTS.parts, "1")


def test_a_snapshot_says_what_does_not_fit(files: Files) -> None:
    files.make_memory()
    memory(files.ram, {100: b"guest"})
    (files.memory / saved.DEVICES).write_bytes(b"devices")
    files.data.write_bytes(b"data")
    snapshot = SNAPSHOTS.finish(files, MADE_BY)
    assert set(snapshot.metadata) == {*SNAPSHOTS.parts, "ram", "data", "devices"}
    for name in set(SNAPSHOTS.parts) - {"format"}:
        with pytest.raises(MvmError, match=SNAPSHOTS.parts[name]):
            SNAPSHOTS.verify(files, snapshot, MADE_BY | {name: "another"})


def test_more_processors_than_firecracker_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="33 processors"):
        makeup.hardware(machine(tmp_path, vcpus=33))
