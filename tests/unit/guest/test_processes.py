"""All that is found is ended, and nothing counts as ended that has still files open."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from mvm.guest import processes
from mvm.guest.processes import Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by /proc")


@pytest.fixture
def child() -> Iterator[Process]:
    with subprocess.Popen(["sleep", "600"]) as popen:
        try:
            process = processes.read(popen.pid)
            assert process is not None
            yield process
        finally:
            popen.kill()


async def test_what_is_found_is_ended(child: Process) -> None:
    def running() -> list[Process]:
        found = processes.read(child.identity.pid)
        return [] if found is None or found.ended else [found]

    assert await processes.kill_all(running) == []
    assert not processes.alive(child.identity)


async def test_one_that_is_not_found_any_more_is_waited_for_until_it_has_ended(
    child: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when its environment has gone already, and its files have not."""
    answers = iter([True, True, False])
    monkeypatch.setattr(processes, "alive", lambda identity: next(answers))
    found = iter([[child]])
    assert await processes.kill_all(lambda: next(found, [])) == []
    assert next(answers, None) is None, "it was asked for until it had ended"


async def test_what_does_not_end_is_told(child: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "alive", lambda identity: True)
    assert await processes.kill_all(lambda: [], seconds=0) == []
    assert await processes.kill_all(lambda: [child], seconds=0.05) == [child]
