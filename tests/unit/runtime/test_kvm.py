"""Whether KVM runs guests is found out by running one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvm.runtime import kvm, payload
from mvm.runtime.base import Probe
from mvm.runtime.firecracker import FirecrackerRuntime

HERE = pytest.mark.skipif(not os.access(kvm.DEVICE, os.R_OK | os.W_OK), reason="there is no /dev/kvm to try")

DEMANDING = ("f0480fc70c25e0001000", "f30f6f0425e0001000660fd4c0")
"""`lock cmpxchg16b` and SSE: what a KVM that emulates most of a guest stumbles over."""


async def test_a_host_without_kvm_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    assert kvm.attempt() == f"{tmp_path / 'kvm'}: No such file or directory"


@HERE
async def test_a_trial_has_an_end_and_an_answer() -> None:
    why = await kvm.why_not()
    assert why is None or why
    assert why == kvm.attempt()


@HERE
def test_a_guest_that_asks_for_little_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where KVM does not run the whole guest, it runs one without what it stumbles over: the trial itself is right."""
    text = payload.TEXT.replace(bytes.fromhex("b9002d3101"), bytes.fromhex("b900100000"))  # fewer rounds
    for words in DEMANDING:
        assert bytes.fromhex(words) in text
        text = text.replace(bytes.fromhex(words), b"\x90" * (len(words) // 2))
    monkeypatch.setattr(payload, "TEXT", text)
    assert kvm.attempt() is None


@HERE
@pytest.mark.parametrize(("instruction", "why"), [(b"\xf4", "halts"), (b"\x0f\x0b", "shuts down")])
def test_a_guest_that_does_not_get_through_is_noticed(
    monkeypatch: pytest.MonkeyPatch, instruction: bytes, why: str
) -> None:
    monkeypatch.setattr(payload, "TEXT", instruction.ljust(len(payload.TEXT), b"\x90"))
    assert why in (kvm.attempt() or "")


async def works() -> None:
    return None


async def does_not_work() -> str:
    return "no virtualisation in this processor"


def installed(programs: Path, *names: str) -> Path:
    directory = programs / "firecracker/1.16.1"
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_text(f"#!/bin/sh\necho {name.capitalize()} v1.16.1\n")
        (directory / name).chmod(0o755)
    return programs


async def probe(programs: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Probe:
    for variable in ("MVM_FIRECRACKER", "MVM_JAILER"):
        monkeypatch.delenv(variable, raising=False)
    given: dict[str, object] = {"programs_dir": programs, "jailed": True, "why_no_kvm": works, **changes}
    return await FirecrackerRuntime(**given).probe()  # type: ignore[arg-type]


async def test_what_is_missing_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere:/usr/bin:/bin")
    nothing = await probe(tmp_path / "none", monkeypatch)
    assert (nothing.usable, "mvm setup firecracker" in (nothing.remedy or "")) == (False, True)
    alone = await probe(installed(tmp_path / "alone", "firecracker"), monkeypatch)
    assert (alone.usable, alone.reason) == (False, "the jailer is not installed")
    both = installed(tmp_path / "both", "firecracker", "jailer")
    no_kvm = await probe(both, monkeypatch, why_no_kvm=does_not_work)
    assert (no_kvm.usable, "no virtualisation" in no_kvm.reason) == (False, True)
    no_network = await probe(both, monkeypatch, no_networks="/dev/net/tun is missing")
    assert (no_network.usable, "/dev/net/tun" in no_network.reason) == (False, True)
    assert (await probe(both, monkeypatch)).usable


async def test_without_its_jailer_it_is_said_aloud_and_refused_in_production(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = installed(tmp_path, "firecracker", "jailer")
    loose = await probe(programs, monkeypatch, jailed=False)
    assert (loose.usable, "WITHOUT ITS JAILER" in loose.reason) == (True, True)
    refused = await probe(programs, monkeypatch, jailed=False, production=True)
    assert (refused.usable, "production mode needs Firecracker's jailer" in refused.reason) == (False, True)


async def test_a_version_with_a_broken_pause_is_not_kept_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MVM_FIRECRACKER", "MVM_JAILER"):
        monkeypatch.delenv(variable, raising=False)
    runtime = FirecrackerRuntime(programs_dir=installed(tmp_path, "firecracker", "jailer"), why_no_kvm=works)
    assert not runtime.capabilities.warm
    assert (await runtime.probe()).usable
    assert not runtime.capabilities.warm
