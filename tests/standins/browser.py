"""A real Chromium without a window, spoken to over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

LIMIT_SECONDS = 30.0
LOOK_SECONDS = 0.05


def chromium() -> str | None:
    """The program, where it is installed (`apt-get install chromium`)."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab. `complaints` are the errors that the browser logged, such as what its security policy refused."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        self.requested: list[str] = []

    async def open(self, url: str) -> None:
        """Go there."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable")
        await self._call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression; raises when it throws."""
        answer = await self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Its value as soon as it is a true one."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not (value := await self.evaluate(expression)):
                await asyncio.sleep(LOOK_SECONDS)
            return value

    async def click(self, text: str) -> None:
        """Click the first button with that text, as soon as there is one."""
        found = f"[...document.querySelectorAll('button')].find((b) => b.textContent === {json.dumps(text)})"
        await self.until(f"Boolean({found})")
        await self.evaluate(f"{found}.click()")

    async def text(self) -> str:
        """What is to be read."""
        return str(await self.evaluate("document.body.innerText"))

    async def screenshot(self, path: Path, *, width: int, height: int) -> None:
        """Take a picture of the page at that size."""
        await self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        picture = await self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                message = await self._socket.receive_json()
                if message.get("id") == self._number:
                    assert "error" not in message, message
                    return dict(message["result"])
                self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.complaints.append(message["params"]["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(message["params"]["exceptionDetails"]))
            case "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """A browser with a profile of its own and one tab; it is gone afterwards."""
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="pytest-chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run", "--disable-extensions"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": profile},  # its lock lies in a directory of its own there
        )
        try:
            port = await _port(Path(profile))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tab = next(each for each in await answer.json() if each["type"] == "page")
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=2**26) as socket:
                    yield Page(socket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _port(profile: Path) -> int:
    file = profile / "DevToolsActivePort"
    async with asyncio.timeout(LIMIT_SECONDS):
        while not file.exists() or not (text := file.read_text()):
            await asyncio.sleep(LOOK_SECONDS)
    return int(text.split("\n", 1)[0])
