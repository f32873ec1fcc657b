"""Stands in for OpenClaw with mvm's plugin: its health check and its control socket, told what to do by a test.

Run by the supervisor as OpenClaw would be. What it was asked is kept in the file `calls` beside it.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

HERE = Path(sys.argv[0]).parent
RUN = Path(os.environ["OPENCLAW_CONFIG_PATH"]).parent
STATE = {"ready": True, "in_flight": 0, "queued": 0, "last_busy_at": None, "next_alarm_at": None, "suspended": False}
SUBSCRIBERS = []


def note(text):
    with (HERE / "calls").open("a") as file:
        file.write(text + "\n")


def behaviour(key, default=None):
    path = HERE / "behaviour.json"
    return json.loads(path.read_text()).get(key, default) if path.exists() else default


def status():
    return json.dumps({"ok": True, "role": "worker", **STATE, "detail": None}).encode() + b"\n"


def change(**changes):
    STATE.update(changes)
    for writer in SUBSCRIBERS:
        writer.write(status())


async def control(reader, writer):
    while line := (await reader.readline()).decode().strip():
        name, _, argument = line.partition(" ")
        if name not in ("STATUS", "SUBSCRIBE", "TEST"):
            note(line)
        answer = {"ok": True}
        if name == "SUBSCRIBE":
            SUBSCRIBERS.append(writer)
            answer = None
            writer.write(status())
        elif name == "STATUS":
            answer = json.loads(status())
        elif name == "TEST":
            change(**json.loads(argument))
        elif name == "CONFIG_APPLIED":
            gate = behaviour("applied", "")
            if gate is None:
                answer = {"ok": False, "detail": "the configuration was not taken in"}
            while gate and not (HERE / gate).exists():
                await asyncio.sleep(0.01)
        elif name == "CHECKPOINT":
            loop = asyncio.get_running_loop()
            deadline = loop.time() + float(argument)
            while STATE["in_flight"] and loop.time() < deadline:
                await asyncio.sleep(0.01)
            if STATE["in_flight"]:
                answer = {"ok": False, "detail": "busy: turn"}
            else:
                change(suspended=True)
                answer["next_alarm_at"] = STATE["next_alarm_at"]
        elif name == "RESTORE":
            change(suspended=False)
        elif name == "RELOAD_SECRETS":
            if STATE["suspended"] or behaviour("reload_fails"):
                answer = {"ok": False, "detail": "secrets.reload unavailable"}
        elif name == "CHANNELS":
            answer["suppressed"] = behaviour("suppressed", [])
        if answer is not None:
            writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
    writer.close()


async def http(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    code = 200 if STATE["ready"] and not STATE["suspended"] else 503
    writer.write(f"HTTP/1.1 {code} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok".encode())
    await writer.drain()
    writer.close()


async def main():
    key = os.environ.get("ANTHROPIC_API_KEY", "")
    note(f"start {hashlib.sha256(key.encode()).hexdigest()[:8]} {os.environ.get('OTHER', '')}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = json.loads(Path(os.environ["OPENCLAW_CONFIG_PATH"]).read_text())
    gate = behaviour("gate")
    while gate and not (HERE / gate).exists():
        await asyncio.sleep(0.01)
    server = await asyncio.start_server(http, "127.0.0.1", config["port"])
    socket = RUN / "control.sock"
    socket.unlink(missing_ok=True)
    await asyncio.start_unix_server(control, str(socket))
    print("hello from openclaw", flush=True)
    await stop.wait()
    note("SIGTERM")
    server.close()
    socket.unlink(missing_ok=True)


asyncio.run(main())
