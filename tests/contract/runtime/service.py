"""Run in place of OpenClaw by the conformance suite: the least that a guest expects of it, and a diary of what it did.

Started as `<python> openclaw.mjs gateway run` with OpenClaw's environment. On its port it answers `/readyz`; any other
connection is a turn under way for as long as it stays open, and gets its lines back in capitals. Standard library only.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["OPENCLAW_STATE_DIR"])
CONFIG = json.loads(Path(os.environ["OPENCLAW_CONFIG_PATH"]).read_text())


class Service:
    def __init__(self) -> None:
        self.turns = 0
        self.suspended = False
        self.changed = asyncio.Event()

    def note(self, what: str) -> None:
        with (STATE / "diary").open("a") as diary:
            diary.write(f"{what}\n")

    def status(self) -> dict[str, object]:
        return {
            "ok": True,
            "role": "worker",
            "in_flight": self.turns,
            "queued": 0,
            "last_busy_at": None,
            "next_alarm_at": CONFIG.get("next_alarm_at"),
            "suspended": self.suspended,
            "ready": True,
            "detail": None,
        }

    async def serve_port(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readline()
        if first.startswith(b"GET /readyz"):
            status = b"503 Service Unavailable" if self.suspended else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        else:
            self.count(1)
            try:
                while first:
                    writer.write(first.upper())
                    first = await reader.readline()
            except ConnectionError:
                pass
            finally:
                self.count(-1)
        writer.close()

    def count(self, change: int) -> None:
        self.turns += change
        self.changed.set()

    async def serve_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := (await reader.readline()).decode().split():
                if line[0] == "SUBSCRIBE":
                    while True:
                        self.changed = asyncio.Event()
                        writer.write(json.dumps(self.status()).encode() + b"\n")
                        await writer.drain()
                        await self.changed.wait()
                writer.write(json.dumps(self.control(line[0])).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    def control(self, command: str) -> dict[str, object]:
        if command == "CHECKPOINT" and self.turns:
            return {"ok": False, "detail": "busy: a turn is under way"}
        if command in ("CHECKPOINT", "RESTORE"):
            self.suspended = command == "CHECKPOINT"
            self.changed.set()
            self.note(command)
        elif command == "RELOAD_SECRETS":
            secrets = json.loads(Path(os.environ["OPENCLAW_CONFIG_PATH"]).with_name("secrets.json").read_text())
            self.note(f"RELOAD {secrets.get('ANTHROPIC_API_KEY')}")
        elif command == "CHANNELS":
            return {"ok": True, "suppressed": []}
        return self.status() if command == "STATUS" else {"ok": True}


async def main() -> None:
    service = Service()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    # Like OpenClaw's own helpers: a process of another session that knows nothing of its origin.
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True, env={})
    (STATE / "helper").write_text(str(helper.pid))
    control = Path(CONFIG["control"])
    control.unlink(missing_ok=True)
    await asyncio.start_server(service.serve_port, "127.0.0.1", CONFIG["port"])
    await asyncio.start_unix_server(service.serve_control, str(control))
    service.note(f"START {os.environ.get('ANTHROPIC_API_KEY')} {os.getpid()}")
    await ended.wait()
    service.note("END")
    os._exit(0)  # the helper is left to whoever supervises


asyncio.run(main())
