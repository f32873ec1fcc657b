"""What the agent holds of a machine while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.runtime.qemu_machines import machine

from mvm.runtime import spawning
from mvm.runtime.qemu import attachment
from mvm.runtime.qemu.attachment import Attachment
from mvm.runtime.qemu.files import Files


async def test_what_qemu_complains_of_without_end_stays_within_bounds(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "OUTPUT_LOOK_SECONDS", 0.01)
    files = Files.of(machine(short_directory))
    ended = asyncio.Event()

    async def run_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    console = await asyncio.start_unix_server(run_on, str(files.console))
    attached = Attachment(files, who="a machine")
    attached.begin()
    with files.output.open("ab", buffering=0) as qemu:
        qemu.write(b"a short complaint\n")
        for _ in range(3):
            qemu.write(b"Unexpected port id\n" * (spawning.OUTPUT_LIMIT // 10))
            async with asyncio.timeout(20):
                while files.output.stat().st_size:
                    await asyncio.sleep(0.01)
        qemu.write(b"the last words\n")
    ended.set()
    await attached.process_ended()
    assert files.output.read_bytes() == b"the last words\n"
    assert not [task for task in asyncio.all_tasks() if "output" in task.get_name() and not task.cancelling()]
    console.close()


def test_output_within_bounds_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "qemu.log"
    spawning.bound_output(output)
    assert not output.exists()
    output.write_bytes(b"x" * spawning.OUTPUT_LIMIT)
    spawning.bound_output(output)
    assert output.stat().st_size == spawning.OUTPUT_LIMIT
