"""A microVM of the stand-in's own, for the tests that ask whether it keeps Firecracker's rules."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tests.standins.firecracker.images import ELF
from tests.standins.firecracker.install import Installed
from tests.standins.firecracker.settings import read_journal

from mvm.drives import erofs, images

LIMIT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: Any

    @property
    def fault(self) -> str:
        return str(self.body["fault_message"]) if isinstance(self.body, dict) else ""


@dataclass
class Machine:
    """One process of the stand-in and the files that its calls name."""

    programs: Installed
    directory: Path
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    _session: aiohttp.ClientSession | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "vmlinux").write_bytes(ELF)
        (self.directory / "initrd").write_bytes(b"initrd")
        if not self.path("root.img").exists():
            empty = self.directory / "empty"
            empty.mkdir(exist_ok=True)
            self.path("root.img").write_bytes(erofs.render(empty))

    def path(self, name: str) -> Path:
        return self.directory / name

    def make_data(self) -> Path:
        """An empty data drive."""
        images.make_ext4(self.path("data.img"), mib=64)
        return self.path("data.img")

    async def start(self) -> Machine:
        """Start the process and wait for its API."""
        words = [str(self.programs.firecracker), "--api-sock", str(self.path("api.sock")), "--id", "vm-1"]
        self.path("api.sock").unlink(missing_ok=True)
        with self.path("output").open("ab") as output:
            self.process = subprocess.Popen(
                [*words, *self.arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.path("api.sock"))))
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                with suppress(aiohttp.ClientConnectionError):
                    assert (await self.get("/version")).status == 200
                    return self
                assert self.process.poll() is None, self.path("output").read_text()
                await asyncio.sleep(0.01)

    async def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None) -> Answer:
        """One call, whatever the body."""
        assert self._session is not None
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        headers = {"Content-Type": "application/json"} if data is not None else {}
        async with self._session.request(method, f"http://localhost{path}", data=data, headers=headers) as response:
            content = await response.read()
            return Answer(status=response.status, body=json.loads(content) if content else None)

    async def get(self, path: str) -> Answer:
        return await self.call("GET", path)

    async def put(self, path: str, body: Any) -> Answer:
        return await self.call("PUT", path, body)

    async def patch(self, path: str, body: Any) -> Answer:
        return await self.call("PATCH", path, body)

    async def must(self, method: str, path: str, body: Any) -> None:
        """A call that is part of the setting and has to work."""
        answer = await self.call(method, path, body)
        assert answer.status == 204, answer

    async def configure(self, *, mem_mib: int = 128, vsock: bool = True, data: bool = False) -> Machine:
        """Everything that a start needs."""
        await self.must("PUT", "/boot-source", self.boot_source)
        await self.must("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": mem_mib})
        await self.must("PUT", "/drives/rootfs", self.drive("rootfs", "root.img", root=True))
        if data:
            await self.must("PUT", "/drives/data", self.drive("data", "data.img", read_only=False))
        if vsock:
            await self.must("PUT", "/vsock", self.vsock)
        return self

    async def boot(self, **how: Any) -> Machine:
        """Configure and start it."""
        await self.configure(**how)
        await self.must("PUT", "/actions", {"action_type": "InstanceStart"})
        return self

    async def pause(self) -> None:
        await self.must("PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        await self.must("PATCH", "/vm", {"state": "Resumed"})

    async def save(self) -> None:
        """Pause and snapshot."""
        await self.pause()
        await self.must("PUT", "/snapshot/create", self.snapshot)

    @property
    def boot_source(self) -> dict[str, str]:
        return {"kernel_image_path": str(self.path("vmlinux")), "initrd_path": str(self.path("initrd"))}

    @property
    def vsock(self) -> dict[str, Any]:
        return {"guest_cid": 3, "uds_path": str(self.path("v.sock"))}

    @property
    def snapshot(self) -> dict[str, str]:
        return {"snapshot_path": str(self.path("state")), "mem_file_path": str(self.path("mem"))}

    def load(self, **more: Any) -> dict[str, Any]:
        """Body of a load of the snapshot that `save` wrote."""
        backend = {"backend_type": "File", "backend_path": str(self.path("mem"))}
        return {"snapshot_path": str(self.path("state")), "mem_backend": backend, **more}

    def drive(self, name: str, file: str, *, root: bool = False, read_only: bool = True) -> dict[str, Any]:
        return {
            "drive_id": name,
            "path_on_host": str(self.path(file)),
            "is_root_device": root,
            "is_read_only": read_only,
        }

    async def connect(self, port: int) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask for a guest port; what was answered, empty when it hung up."""
        reader, writer = await asyncio.open_unix_connection(str(self.path("v.sock")))
        writer.write(f"CONNECT {port}\n".encode())
        return (await asyncio.wait_for(reader.readline(), LIMIT_SECONDS)).decode().strip(), reader, writer

    @property
    def violations(self) -> list[str]:
        return [entry["what"] for entry in read_journal(self.programs.settings.control, "violation")]

    async def until_ended(self) -> int:
        """Its exit status."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, LIMIT_SECONDS)

    async def close(self) -> None:
        """End it, whatever it does."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            await self.until_ended()

    async def again(self) -> Machine:
        """Another process over the same files, as after a sleep: stale sockets removed."""
        await self.close()
        self.path("v.sock").unlink(missing_ok=True)
        return await self.start()
