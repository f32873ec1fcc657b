"""Both stand-ins in one process, and the state file by which the demo and tests find them.

The state file (0600) keeps ports, token, key and who has written to whom, so that stand-ins that are started again with
the same file are the same to a deployment that already knows them.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mvm.demo.model_provider import DEFAULT_MODEL, ModelStandIn
from mvm.demo.telegram import TelegramStandIn
from mvm.model.errors import Conflict, InvalidInput, MvmError, NotFound, Unavailable

_PARENT_CHECK_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1

Json = dict[str, object]


@dataclass(frozen=True)
class TelegramAddress:
    """Where the Telegram stand-in is and what it lets in."""

    url: str
    token: str
    admin_token: str
    bot_id: int
    username: str


@dataclass(frozen=True)
class ModelAddress:
    """Where the model stand-in is and what it lets in."""

    url: str
    key: str
    admin_token: str
    model: str


@dataclass(frozen=True)
class StandInState:
    """What the state file says. `pid` is the process that wrote it, which may have ended."""

    pid: int
    started_at: float
    telegram: TelegramAddress
    model: ModelAddress
    memory: Json

    @classmethod
    def read(cls, path: Path) -> StandInState:
        """`NotFound` without a file, `InvalidInput` when it is not one of these."""
        try:
            given = json.loads(path.read_text())
            return cls(
                pid=int(given["pid"]),
                started_at=float(given["started_at"]),
                telegram=TelegramAddress(**given["telegram"]),
                model=ModelAddress(**given["model"]),
                memory=dict(given["memory"]),
            )
        except FileNotFoundError:
            raise NotFound(f"no stand-ins have been started here: {path} does not exist") from None
        except (ValueError, KeyError, TypeError, OSError) as problem:
            raise InvalidInput(
                f"{path} is not a state file of the stand-ins: {problem}", hint="remove it and start them again"
            ) from problem

    def to_json(self) -> Json:
        return {
            "pid": self.pid,
            "started_at": self.started_at,
            "telegram": vars(self.telegram),
            "model": vars(self.model),
            "memory": self.memory,
        }


async def serve(state_file: Path, *, with_parent: bool = False) -> None:
    """Run both until SIGTERM or SIGINT, or with `with_parent` until the process that started this one ends."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    parent = os.getppid()
    if with_parent:
        end_with_parent()
    state_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _sole_user(state_file):
        former = _former(state_file)
        telegram = await _start_telegram(former)
        model = await _start_model(former)
        try:
            keeper = asyncio.create_task(_keep_state(state_file, telegram, model), name="stand-ins' state file")
            while not ended.is_set():
                if with_parent and os.getppid() != parent:
                    break
                if keeper.done():
                    keeper.result()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PARENT_CHECK_SECONDS):
                        await ended.wait()
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        finally:
            await model.stop()
            await telegram.stop()


def end_with_parent() -> None:
    """Have the kernel end this process when its parent does, where the kernel can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _former(state_file: Path) -> StandInState | None:
    try:
        return StandInState.read(state_file)
    except NotFound:
        return None


async def _start_telegram(former: StandInState | None) -> TelegramStandIn:
    """With the former port and token; with a free port when that one is taken meanwhile."""
    known = former.telegram if former else None

    def made(port: int) -> TelegramStandIn:
        return TelegramStandIn(
            port=port,
            token=known.token if known else None,
            username=known.username if known else "mvm_demo_bot",
            admin_token=known.admin_token if known else None,
        )

    standin = made(_port_of(known.url) if known else 0)
    try:
        await standin.start()
    except Unavailable:
        standin = made(0)
        await standin.start()
    if former is not None:
        standin.remember(former.memory)
    return standin


async def _start_model(former: StandInState | None) -> ModelStandIn:
    known = former.model if former else None

    def made(port: int) -> ModelStandIn:
        return ModelStandIn(
            port=port, key=known.key if known else None, admin_token=known.admin_token if known else None
        )

    standin = made(_port_of(known.url) if known else 0)
    try:
        await standin.start()
    except Unavailable:
        standin = made(0)
        await standin.start()
    return standin


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def _keep_state(path: Path, telegram: TelegramStandIn, model: ModelStandIn) -> None:
    """Write the state file now and whenever somebody has written for the first time."""
    started_at = time.time()
    while True:
        memory = telegram.remembered()
        state = StandInState(
            pid=os.getpid(),
            started_at=started_at,
            telegram=TelegramAddress(
                telegram.url, telegram.token, telegram.admin_token, telegram.bot.id, telegram.bot.username
            ),
            model=ModelAddress(model.url, model.key, model.admin_token, DEFAULT_MODEL),
            memory=memory,
        )
        write_private(path, json.dumps(state.to_json(), indent=1))
        await telegram.transcript.wait(lambda known=memory: telegram.remembered() != known, timeout=float("inf"))  # type: ignore[misc]


def write_private(path: Path, text: str) -> None:
    """Replace `path` by a file of mode 0600 with this text; a reader sees the old or the new one, never half."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=secrets.token_hex(4), dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def lock_path(state_file: Path) -> Path:
    """The file that the process serving from `state_file` holds locked; it names the process."""
    return state_file.with_name(state_file.name + ".lock")


@contextmanager
def _sole_user(state_file: Path) -> Iterator[None]:
    """Hold the lock beside the state file, so that two processes never serve from one."""
    handle = os.open(lock_path(state_file), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(
                f"stand-ins with the state file {state_file} are running already",
                hint="use those, or choose another --name",
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


def main(state_file: Path, *, with_parent: bool) -> int:
    """Run the stand-ins in this process; gives its exit status."""
    try:
        asyncio.run(serve(state_file, with_parent=with_parent))
    except MvmError as problem:
        sys.stderr.write(f"mvm: {problem.message}\n" + (f"  {problem.hint}\n" if problem.hint else ""))
        return int(problem.exit_status)
    return 0
