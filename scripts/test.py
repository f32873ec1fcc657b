"""Run every check and test (`make test`), and fail when a test leaves anything behind on the machine.

Three runs of pytest: all that needs neither a real OpenClaw nor a virtual machine, on two workers; then the tests with
the real one, and then those with virtual machines, each alone on the machine. `--full` adds the tests marked slow,
`--vm` runs all that need virtual machines and nothing else. Further arguments go to pytest.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = "MVM_TEST_RUN"
"""Environment variable that every process started by the tests inherits."""
NO_TESTS_COLLECTED = 5
GRACE_SECONDS = 10.0
OUR_DEVICES = re.compile(r"br-tenant-\d+|tn\d+i\d+|mvm")
OURS = "pytest"
"""How the names of pytest's own directories in the temporary one begin."""


def pytest(selection: str, arguments: list[str], environment: dict[str, str], basetemp: Path) -> int:
    """Run the tests of one selection; a selection that is empty is no failure."""
    command = [sys.executable, "-m", "pytest", "-m", selection, "--basetemp", str(basetemp), *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return 0 if status == NO_TESTS_COLLECTED else status


def survivors(mark: str, temporary: Path) -> dict[int, str]:
    """Processes of this test run that still exist, with their command lines.

    Machines inherit no mark; they are told of their directory, which is in the temporary one.
    """
    needles, found = (f"{MARK}={mark}".encode(), os.fsencode(temporary)), {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes()
            if any(needle in environment for needle in needles) and int(process.name) != os.getpid():
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(process.name)] = command[:160]
    return found


def memory_files() -> set[Path]:
    """What mvm keeps on memory-backed storage."""
    return set(Path("/dev/shm").glob("mvm-*"))  # noqa: S108


def kernel_objects() -> set[str]:
    """Network devices and namespaces of ours, and mounts below the temporary directory, that there are now."""
    devices = (path.name for path in Path("/sys/class/net").glob("*"))
    found = {f"network device {name}" for name in devices if OUR_DEVICES.match(name)}
    found |= {f"network namespace {path.name}" for path in Path("/run/netns").glob("mvm*")}
    mounts = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return found | {f"mount {point}" for point in mounts if point.startswith(tempfile.gettempdir())}


def left_behind(mark: str, temporary: Path, before: set[Path], objects: set[str]) -> list[str]:
    """What the tests left: processes (ended here, after a grace), kernel objects, files in memory and on the disk."""
    deadline = time.monotonic() + GRACE_SECONDS
    while survivors(mark, temporary) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [f"process {pid}: {command}" for pid, command in survivors(mark, temporary).items()]
    for pid in survivors(mark, temporary):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    left += sorted(kernel_objects() - objects)
    left += [f"{path}" for path in sorted(memory_files() - before)]
    left += [f"{path}" for path in sorted(temporary.iterdir()) if not path.name.startswith(OURS)]
    return left


def main() -> int:
    """Every run, then the check for left-overs; the status is 0 only when all is well."""
    arguments = sys.argv[1:]
    full, vm = "--full" in arguments, "--vm" in arguments
    arguments = [argument for argument in arguments if argument not in ("--full", "--vm")]
    scope = "" if full or vm else " and not slow"
    mark, before, objects = uuid.uuid4().hex, memory_files(), kernel_objects()
    temporary = Path(tempfile.mkdtemp(prefix="mvmt-"))  # short: sockets live in it
    temporary.chmod(0o711)  # programs under a user of their own find their way
    environment = {
        **os.environ,
        MARK: mark,
        "TMPDIR": str(temporary),
        "NODE_DISABLE_COMPILE_CACHE": "1",  # it would be kept in TMPDIR
        "HYPOTHESIS_STORAGE_DIRECTORY": str(temporary / f"{OURS}-hypothesis"),
    }
    try:
        runs = {"not openclaw and not vm": 2, "openclaw and not vm": 0, "vm": 0}
        statuses = [
            pytest(f"{selection}{scope}", ["-n", str(workers), *arguments], environment, temporary / f"{OURS}-{number}")
            for number, (selection, workers) in enumerate(runs.items(), 1)
            if selection == "vm" or not vm
        ]
        left = left_behind(mark, temporary, before, objects)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for item in left:
        print(f"left behind: {item}", file=sys.stderr)
    return max(*statuses, 1 if left else 0)


if __name__ == "__main__":
    sys.exit(main())
