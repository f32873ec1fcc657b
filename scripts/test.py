"""Run every check and test (`make test`), and fail when a test leaves a process, a file or memory behind.

Two runs of pytest: all that needs no real OpenClaw on two workers, then the tests with the real one, alone on the
machine. `--full` adds the tests marked slow. Further arguments go to pytest.
"""

from __future__ import annotations

import contextlib
import os
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
OURS = "pytest"
"""How the names of pytest's own directories in the temporary one begin."""


def pytest(selection: str, arguments: list[str], environment: dict[str, str], basetemp: Path) -> int:
    """Run the tests of one selection; a selection that is empty is no failure."""
    command = [sys.executable, "-m", "pytest", "-m", selection, "--basetemp", str(basetemp), *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return 0 if status == NO_TESTS_COLLECTED else status


def survivors(mark: str) -> dict[int, str]:
    """Processes of this test run that still exist, with their command lines."""
    needle, found = f"{MARK}={mark}".encode(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(process.name)] = command[:160]
    return found


def memory_files() -> set[Path]:
    """What mvm keeps on memory-backed storage."""
    return set(Path("/dev/shm").glob("mvm-*"))  # noqa: S108


def left_behind(mark: str, temporary: Path, before: set[Path]) -> list[str]:
    """What the tests left: processes (ended here, after a grace), files in memory and in the temporary directory."""
    deadline = time.monotonic() + GRACE_SECONDS
    while survivors(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [f"process {pid}: {command}" for pid, command in survivors(mark).items()]
    for pid in survivors(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    left += [f"{path}" for path in sorted(memory_files() - before)]
    left += [f"{path}" for path in sorted(temporary.iterdir()) if not path.name.startswith(OURS)]
    return left


def main() -> int:
    """Both runs, then the check for left-overs; the status is 0 only when all is well."""
    arguments = sys.argv[1:]
    full = "--full" in arguments
    arguments = [argument for argument in arguments if argument != "--full"]
    scope = "" if full else " and not slow"
    mark, before = uuid.uuid4().hex, memory_files()
    temporary = Path(tempfile.mkdtemp(prefix="mvmt-"))  # short: sockets live in it
    environment = {
        **os.environ,
        MARK: mark,
        "TMPDIR": str(temporary),
        "NODE_DISABLE_COMPILE_CACHE": "1",  # it would be kept in TMPDIR
        "HYPOTHESIS_STORAGE_DIRECTORY": str(temporary / f"{OURS}-hypothesis"),
    }
    try:
        statuses = [
            pytest(f"not openclaw{scope}", ["-n", "2", *arguments], environment, temporary / f"{OURS}-1"),
            pytest(f"openclaw{scope}", ["-n", "0", *arguments], environment, temporary / f"{OURS}-2"),
        ]
        left = left_behind(mark, temporary, before)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for item in left:
        print(f"left behind: {item}", file=sys.stderr)
    return max(*statuses, 1 if left else 0)


if __name__ == "__main__":
    sys.exit(main())
