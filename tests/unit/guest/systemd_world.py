"""A whole guest whose services are units: the real zipapp, and a `systemctl` that does what the units say."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.unit.guest.agent_world import AgentWorld
from tests.unit.guest.guest_world import LIMIT_SECONDS, until

from mvm.guest import processes, units
from mvm.guest.processes import ROOT_MARKER, SERVICE_MARKER
from mvm.guest.services import Programs
from mvm.guest.units import Unit

HERE = (units.SUPERVISOR, units.INTEGRATIONS, units.ENVIRONMENT, units.AGENT, units.SLEEP_PREP)
"""What comes up at boot and has something to do in a guest that is a directory."""
LATER = (units.OPENCLAW, units.OPENCLAW_WAKE)


class SystemdWorld(AgentWorld):
    """One guest, supervised by units."""

    def __init__(self) -> None:
        super().__init__()
        self.systemd = self.directory / "systemd"
        self.systemd.mkdir()
        program = self.systemd / "systemctl"
        text = (Path(__file__).parent / "scripted_systemctl.py").read_text()
        program.write_text(text.replace("#!/usr/bin/env python3", f"#!{sys.executable}"))
        program.chmod(0o755)
        described = {unit.service: self._describe(unit) for unit in (*HERE, *LATER)}
        (self.systemd / "units.json").write_text(json.dumps(described))

    @property
    def environment(self) -> dict[str, str]:
        given = super().environment
        return {
            **given,
            "PATH": f"{self.systemd}:{given['PATH']}",
            "SCRIPTED_SYSTEMD": str(self.systemd),
            units.SUPERVISOR_VARIABLE: units.SYSTEMD,
            ROOT_MARKER: str(self.root.resolve()),
        }

    def _describe(self, unit: Unit) -> dict[str, object]:
        inside = {path: str(self.root / path.removeprefix("/")) for path in unit.environment_files}
        return {
            "argv": Programs.from_environment(self.environment).command(unit.program, unit.arguments),
            "environment": {**self.environment, SERVICE_MARKER: unit.short},
            "environment_files": list(inside.values()),
            "requires": [f"{name}.service" for name in unit.requires],
            "step": unit.step,
            "log": str(self.paths.log(unit.short)),
        }

    async def begin(self) -> None:
        """Start every unit that starts at boot, in order."""
        await self.listen_as_host()
        for unit in HERE:
            await self.systemctl("start", unit.service)
        await until((self.channel / "guest_52.sock").exists, "the agent's socket")
        await until((self.channel / "guest_5200.sock").exists, "the port for sleeps")
        await until(self.paths.supervisor_socket.exists, "the supervisor's socket")

    async def systemctl(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            str(self.systemd / "systemctl"), *arguments, env=self.environment, stderr=asyncio.subprocess.PIPE
        )
        _, said = await asyncio.wait_for(process.communicate(), LIMIT_SECONDS)
        assert process.returncode == 0, said.decode()

    def asked(self) -> list[str]:
        """Calls of `systemctl`, oldest first."""
        return (self.systemd / "calls").read_text().splitlines()

    def forget_asked(self) -> None:
        (self.systemd / "calls").write_text("")

    async def close(self) -> None:
        await self.systemctl("stop", units.AGENT.service)
        # What it asked for last is still being done by others.
        await until(lambda: not any(map(self._is_systemctl, self.alive())), "the last start")
        for unit in (units.OPENCLAW, *reversed(HERE)):
            await self.systemctl("stop", unit.service)
        await super().close()

    def _is_systemctl(self, process: processes.Process) -> bool:
        try:
            return b"/systemctl" in Path(f"/proc/{process.identity.pid}/cmdline").read_bytes()
        except OSError:
            return False
