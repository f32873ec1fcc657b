"""OpenClaw alone, started by hand: what a wake costs at least where no memory is kept."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from mvm.runtime.process.claims import LOWEST_PORT

READY_LIMIT_SECONDS = 120.0


async def start_ms(node: Path, openclaw_dir: Path) -> float:
    """OpenClaw with the smallest configuration it accepts: exec to /readyz 200, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="mvm-bench-") as text:
        directory = Path(text)
        port = LOWEST_PORT - 500
        config = directory / "openclaw.json"
        gateway = {"mode": "local", "port": port, "bind": "loopback", "auth": {"mode": "token", "token": "bench"}}
        config.write_text(json.dumps({"gateway": gateway, "discovery": {"mdns": {"mode": "off"}}}))
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": text,
            "OPENCLAW_STATE_DIR": text,
            "OPENCLAW_CONFIG_PATH": str(config),
            "OPENCLAW_NO_RESPAWN": "1",
            "OPENCLAW_NO_AUTO_UPDATE": "1",
        }
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            str(node),
            str(openclaw_dir / "openclaw.mjs"),
            "gateway",
            "run",
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await asyncio.wait_for(_until_ready(f"http://127.0.0.1:{port}/readyz"), READY_LIMIT_SECONDS)
            return (time.perf_counter() - began) * 1000
        finally:
            process.terminate()
            await process.wait()


async def _until_ready(url: str) -> None:
    while True:
        try:
            await asyncio.to_thread(urllib.request.urlopen, url, None, 2)
            return
        except (urllib.error.URLError, OSError):
            await asyncio.sleep(0.05)
