"""The pinned OpenClaw, installed once per programs directory and shared by every deployment.

`<programs>/openclaw/<version>-<lock digest>/node_modules/...` exists whole or not at all: npm works in a staging
directory, which is renamed when what it made has been checked. Every package is verified by npm against the integrity
hashes of the committed lock; install scripts are never run. npm's cache keeps what an interrupted run had downloaded.
`--legacy-peer-deps` and the override in package.json are there because the Discord package's bundled modules do not
satisfy each other's ranges, which `npm ci` would otherwise call a lock that does not fit.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO

from mvm.model.errors import MvmError, TimedOut, Unavailable
from mvm.openclaw.npm_errors import explain
from mvm.openclaw.programs import Programs, find_programs

INSTALL_TIMEOUT_SECONDS = 1800.0
STALL_TIMEOUT_SECONDS = 300.0
"""npm is given up when for this long no further package has appeared."""
FETCH_RETRIES = 4
LOCK_TIMEOUT_SECONDS = 1800.0
NEEDED_DISK_MIB = 1200
"""OpenClaw takes 606 MiB (OPENCLAW.md section 1); npm's cache of its downloads as much again at most."""
UNUSED_DAYS = 7.0
"""An old version is removed when no process has used it for this long: another mvm may share the directory."""

_POLL_SECONDS = 0.5
_DIGEST_LENGTH = 12
_MANIFEST = "installation.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an installation is; `total` is None while nothing can be counted."""

    text: str
    done: int = 0
    total: int | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The committed npm lock: what is installed, down to the last package."""

    version: str
    digest: str
    package_json: bytes
    package_lock: bytes
    packages: tuple[str, ...]
    """Directories (relative) of the packages that npm makes on every platform."""

    @property
    def name(self) -> str:
        """Name of the directory that it is installed into."""
        return f"{self.version}-{self.digest}"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A complete installation."""

    version: str
    root: Path

    @property
    def openclaw_dir(self) -> Path:
        """Directory of the npm package `openclaw` (MVM_OPENCLAW_DIR)."""
        return self.root / "node_modules/openclaw"

    @property
    def discord_dir(self) -> Path:
        """Directory of the Discord channel's package."""
        return self.root / "node_modules/@openclaw/discord"


@cache
def committed_lock() -> Lock:
    """The lock that this mvm was shipped with."""
    files = resources.files("mvm.openclaw") / "npm"
    package_json = (files / "package.json").read_bytes()
    package_lock = (files / "package-lock.json").read_bytes()
    packages = json.loads(package_lock)["packages"]
    return Lock(
        version=packages["node_modules/openclaw"]["version"],
        digest=hashlib.sha256(package_json + b"\0" + package_lock).hexdigest()[:_DIGEST_LENGTH],
        package_json=package_json,
        package_lock=package_lock,
        packages=tuple(path for path, package in packages.items() if path and not package.get("optional")),
    )


def installed(programs_dir: Path, lock: Lock | None = None) -> Installation | None:
    """The installation of the pinned version, or None. One that exists is complete."""
    lock = lock or committed_lock()
    root = programs_dir / "openclaw" / lock.name
    return Installation(version=lock.version, root=root) if (root / _MANIFEST).is_file() else None


async def install_async(
    programs_dir: Path, *, on_progress: OnProgress, programs: Programs | None = None
) -> Installation:
    """`install` in a thread; `on_progress` is called in that thread."""
    return await asyncio.to_thread(install, programs_dir, on_progress=on_progress, programs=programs)


def install(
    programs_dir: Path, *, on_progress: OnProgress, programs: Programs | None = None, lock: Lock | None = None
) -> Installation:
    """Install the pinned OpenClaw unless it is there; several callers at once make one installation.

    Raises `Unavailable` (no Node, no network, no space), `TimedOut` (npm or another installer hangs) or `MvmError`
    (npm failed or what it made is not right), each with what to do; then nothing but npm's cache is left.
    """
    lock = lock or committed_lock()
    found = installed(programs_dir, lock)
    if found is not None:
        _link_peer(found.root)  # an installation of an older mvm is without
        return found
    programs = programs or find_programs()
    home = programs_dir / "openclaw"
    home.mkdir(parents=True, exist_ok=True)
    with _only_one(home / ".lock", on_progress):
        found = installed(programs_dir, lock)
        if found is not None:
            return found
        for left_over in home.glob(".staging-*"):
            shutil.rmtree(left_over)
        _require_space(home)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=home))
        try:
            staging.chmod(0o755)
            _fill(staging, lock, programs, on_progress)
            os.sync()
            root = home / lock.name
            staging.rename(root)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        collect_garbage(home, keep=lock.name)
    return Installation(version=lock.version, root=root)


def collect_garbage(home: Path, *, keep: str) -> list[Path]:
    """Remove versions that nobody uses: not `keep`, named by no process, and not made or used for a week."""
    removed = []
    for directory in home.iterdir():
        manifest = directory / _MANIFEST
        if directory.name == keep or not manifest.is_file():
            continue
        if time.time() - manifest.stat().st_mtime < UNUSED_DAYS * 86400 or _in_use(directory):
            continue
        doomed = directory.with_name(f".staging-old-{directory.name}")
        directory.rename(doomed)
        shutil.rmtree(doomed)
        removed.append(directory)
    return removed


def mark_used(installation: Installation) -> None:
    """Note that an instance was started from this installation, so that it is not collected as unused."""
    with contextlib.suppress(OSError):  # it may belong to another user, who then decides
        os.utime(installation.root / _MANIFEST)


def _fill(staging: Path, lock: Lock, programs: Programs, on_progress: OnProgress) -> None:
    """Run `npm ci` in `staging`, check what it made, and write the manifest that makes it count."""
    (staging / "package.json").write_bytes(lock.package_json)
    (staging / "package-lock.json").write_bytes(lock.package_lock)
    # fmt: off
    command = [
        str(programs.node), str(programs.npm), "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund",
        "--legacy-peer-deps", "--no-update-notifier", "--prefer-offline", "--loglevel=error",
        f"--fetch-retries={FETCH_RETRIES}", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=20000",
    ]
    # fmt: on
    search_path = os.pathsep.join([str(programs.node.parent), os.environ.get("PATH", os.defpath)])
    with tempfile.TemporaryFile() as errors:
        npm = subprocess.Popen(
            command,
            cwd=staging,
            env={"NODE_USE_SYSTEM_CA": "1", **os.environ, "PATH": search_path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            _watch(npm, staging, lock, on_progress)
        finally:
            if npm.poll() is None:
                npm.kill()
                npm.wait()
        if npm.returncode:
            errors.seek(0)
            raise explain(errors.read().decode(errors="replace"), npm.returncode)
    _link_peer(staging)
    on_progress(Progress(text="checking what npm installed"))
    _verify(staging, lock, programs)
    manifest = {"version": lock.version, "packages": len(lock.packages), "node": programs.version}
    (staging / _MANIFEST).write_text(json.dumps(manifest) + "\n")


def _link_peer(root: Path) -> None:
    """Put OpenClaw into the Discord channel's own `node_modules`: there it insists on finding a plugin's peer."""
    package = root / "node_modules/@openclaw/discord"
    link = package / "node_modules/openclaw"
    if package.is_dir() and not link.is_symlink():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to("../../../openclaw")


def _watch(npm: subprocess.Popen[bytes], staging: Path, lock: Lock, on_progress: OnProgress) -> None:
    """Report packages as they appear until npm ends; raise `TimedOut` when it hangs."""
    began = moved = time.monotonic()
    missing = list(lock.packages)
    total = len(missing)
    while npm.poll() is None:
        before = len(missing)
        missing = [path for path in missing if not (staging / path / "package.json").exists()]
        now = time.monotonic()
        moved = now if len(missing) < before else moved
        done = total - len(missing)
        on_progress(Progress(text=f"OpenClaw {lock.version} from npm", done=done, total=total))
        waited, limit = (now - began, INSTALL_TIMEOUT_SECONDS)
        if done < total and now - moved > STALL_TIMEOUT_SECONDS:
            waited, limit = (now - moved, STALL_TIMEOUT_SECONDS)
        if waited > limit:
            raise TimedOut(
                f"npm was given up after {waited:.0f} s with {done} of {total} packages of OpenClaw {lock.version}",
                hint="check the connection to the npm registry and run it again; what was downloaded is kept",
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            npm.wait(_POLL_SECONDS)


def _verify(staging: Path, lock: Lock, programs: Programs) -> None:
    """The packages are there and OpenClaw itself starts and says the pinned version."""
    absent = [path for path in lock.packages if not (staging / path / "package.json").is_file()]
    if absent:
        raise MvmError(
            f"npm reported success but {len(absent)} packages are missing, {absent[0]} among them",
            hint="run it again; if it stays so, run `npm cache verify`",
        )
    entry = staging / "node_modules/openclaw/openclaw.mjs"
    with tempfile.TemporaryDirectory() as home:
        environment = {"HOME": home, "OPENCLAW_STATE_DIR": home, "PATH": str(programs.node.parent)}
        try:
            answer = subprocess.run(
                [programs.node, entry, "--version"], capture_output=True, text=True, timeout=120, env=environment
            )
        except subprocess.TimeoutExpired:
            raise TimedOut("`openclaw --version` did not answer within 120 s", hint="run it again") from None
    if answer.returncode or lock.version not in answer.stdout:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        raise MvmError(
            f"the installed OpenClaw does not start as {lock.version} on Node {programs.version}: "
            f"{said[-1] if said else 'no output'}",
            hint="run it again; `mvm doctor` shows which Node is used",
        )


@contextlib.contextmanager
def _only_one(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold the installers' lock; the kernel lets go of it however its holder ends."""
    with path.open("a+") as file:
        began = time.monotonic()
        while not _try_lock(file):
            waited = time.monotonic() - began
            file.seek(0)
            holder = file.read().strip() or "unknown"
            if waited > LOCK_TIMEOUT_SECONDS:
                raise TimedOut(
                    f"another installation of OpenClaw (process {holder}) has held {path} for {waited:.0f} s",
                    hint="end that process if it hangs, then run it again",
                )
            on_progress(Progress(text=f"waiting for another installation of OpenClaw (process {holder})"))
            time.sleep(_POLL_SECONDS)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _require_space(directory: Path) -> None:
    free_mib = shutil.disk_usage(directory).free // 2**20
    if free_mib < NEEDED_DISK_MIB:
        raise Unavailable(
            f"{directory} has {free_mib} MiB free and OpenClaw needs {NEEDED_DISK_MIB}",
            hint="free some space, or choose another place with MVM_PROGRAMS_DIR",
        )


def _in_use(directory: Path) -> bool:
    """True when some process was started with this directory in its arguments or environment."""
    needle = os.fsencode(directory)
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if needle in (process / name).read_bytes():
                    return True
    return False


def _main() -> int:
    """Install into MVM_PROGRAMS_DIR, with one line of progress now and then (used by `make setup`)."""
    target = os.environ.get("MVM_PROGRAMS_DIR")
    if not target:
        print("error: MVM_PROGRAMS_DIR is not set\nhint: run `make setup`", file=sys.stderr)
        return 2
    shown = -1

    def show(progress: Progress) -> None:
        nonlocal shown
        step = progress.done * 10 // progress.total if progress.total else -2
        if step != shown:
            shown = step
            count = f": {progress.done} of {progress.total} packages" if progress.total else ""
            print(f"    {progress.text}{count}", file=sys.stderr, flush=True)

    try:
        install(Path(target), on_progress=show)
    except MvmError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return int(error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
