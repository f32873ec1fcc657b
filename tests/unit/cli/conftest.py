"""An agent that answers as told, and a way to type commands at it."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mvm.cli.main import main
from mvm.wire.frames import API_FRAME_LIMIT, FrameError, read_frame, write_frame

Json = dict[str, Any]
Answer = Json | list[Json] | Callable[[Json], Json]


class ScriptedAgent:
    """Listens like the agent and answers each request with what was set for its name.

    An answer is the body of the result, a function of the parameters that makes it, or a list of whole frames.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answers: dict[str, Answer] = {"NodeInfo": {"node_id": "here"}}
        self.requests: list[tuple[str, Json]] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def refuse(self, name: str, code: int, message: str, hint: str | None = None) -> None:
        self.answers[name] = [{"Error": {"code": code, "message": message, "hint": hint}}]

    def asked(self, name: str) -> Json:
        """Parameters of the last request of that name."""
        return next(params for asked, params in reversed(self.requests) if asked == name)

    def __enter__(self) -> ScriptedAgent:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_unix_server(self._converse, str(self.socket))
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            frame = await read_frame(reader, limit=API_FRAME_LIMIT, timeout=10)
            assert isinstance(frame, dict)
            ((name, params),) = frame.items()
            self.requests.append((name, params))
            answer = self.answers[name]
            if callable(answer):
                answer = answer(params)
            for each in answer if isinstance(answer, list) else [{f"{name}Result": answer}]:
                await write_frame(writer, each, limit=API_FRAME_LIMIT, timeout=10)
        except FrameError:
            pass
        finally:
            writer.close()


@dataclass
class Typed:
    """What came of a command line."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> tuple[str, str]:
        """The two lines of an error: what was wrong, what to do."""
        what, hint = self.err.splitlines()[-2:]
        return what.removeprefix("error: "), hint.removeprefix("hint: ")


Type = Callable[..., Typed]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedAgent]:
    with tempfile.TemporaryDirectory(prefix="mvm-") as run_dir:  # short, for the socket's sake
        monkeypatch.setenv("MVM_RUN_DIR", run_dir)
        monkeypatch.setenv("MVM_STATE_DIR", str(tmp_path))
        monkeypatch.setenv("MVM_NO_AUTOSTART", "1")
        with ScriptedAgent(Path(run_dir) / "agent.sock") as scripted:
            yield scripted


@pytest.fixture
def mvm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Type:
    monkeypatch.delenv("MVM_RUNTIME", raising=False)

    def typed(*arguments: str) -> Typed:
        status = main(arguments)
        captured = capsys.readouterr()
        return Typed(int(status), captured.out, captured.err)

    return typed
