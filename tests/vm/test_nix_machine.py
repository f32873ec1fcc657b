"""Flakes that are built in machines of role builder, really: Debian's nix in an image of mvm's own, no network.

What is built is next to nothing, by a shell in Nix's sandbox: nixpkgs is not within reach of every machine that tests
run on. All the rest is as an operator has it who writes `nix_build = "machine"`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from tests.vm.images import builder, cache
from tests.vm.namespace import outside

from mvm.host import build_machines
from mvm.host.app import Host, open_host
from mvm.host.build_machines import Size
from mvm.host.locations import Locations, locate
from mvm.host.programs import builder_image
from mvm.image.base import FILES, MANIFEST, Manifest
from mvm.model.entities import Pool, PoolSpec
from mvm.model.errors import MvmError
from mvm.model.ids import PoolId, TenantId
from mvm.model.roles import Role
from mvm.network.taps import open_tap
from mvm.runtime.base import Machine
from mvm.runtime.qemu import QemuRuntime

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("private_network"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]

ALICE = TenantId("alice")
WORKERS = PoolId("workers")
IMAGE = "tenant-minimal"
SCRIPT = """
set -e
mkdir "$out"
printf '\\177ELFkernel' > "$out/real"
ln -s "$out/real" "$out/vmlinux"
ip link > "$out/initrd" 2>&1 || true
id >> "$out/initrd"
head -c 1024 /dev/zero > "$out/rootfs.erofs"
printf '\\342\\341\\365\\340' >> "$out/rootfs.erofs"
head -c 3000000 /dev/zero >> "$out/rootfs.erofs"
echo '{"kernel_release": "6.1", "kernel_arguments": ["quiet"], "packages": {"thing": "1"}}' > "$out/manifest.json"
"""
FLAKE = """
{
  outputs = { self }: {
    packages.x86_64-linux.%s = derivation {
      name = "tenant";
      system = "x86_64-linux";
      builder = "/bin/sh";
      args = [ "-c" (builtins.readFile ./image.sh) ];
    };
  };
}
"""


class Enough(Exception):
    """Somebody does not want it any more."""


def tap_of(machine: Machine) -> int | None:
    return open_tap(machine.tap, machine.bridge) if machine.bridge else None


@pytest.fixture(scope="module")
def image_in_advance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of a builder's machine is there: its packages come from where the tests' own network does not lead."""
    if not (readiness := builder().probe()).usable:
        pytest.skip(f"no image can be built: {readiness.reason}")
    locations = locate({"state_dir": str(tmp_path_factory.mktemp("builder"))})
    with pytest.MonkeyPatch.context() as patch, outside():
        patch.setenv("MVM_IMAGE_CACHE", str(cache()))
        return builder_image(locations).make(lambda _step: None)


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch, image_in_advance: Path) -> AsyncIterator[Host]:
    """An agent's parts on this host, with a tenant."""
    monkeypatch.setenv("MVM_IMAGE_CACHE", str(cache()))
    monkeypatch.setenv("NIX_CONFIG", "substituters =")
    monkeypatch.setattr(build_machines, "usual_size", lambda: Size(vcpus=1, mem_mib=768, data_mib=2048))
    directory = Path(tempfile.mkdtemp(prefix="mvm-"))  # short enough for sockets
    locations = Locations(
        state_dir=directory / "s",
        run_dir=directory / "r",
        programs_dir=directory / "p",
        secrets_dir=directory / "r/secrets",
        secrets_in_memory=False,
        runtime="qemu",
        production=False,
        log_level="info",
        autostart=False,
        nix_build="machine",
    )
    for path in (locations.state_dir, locations.run_dir, locations.secrets_dir):
        path.mkdir(mode=0o700, parents=True)
    qemu = QemuRuntime(run_dir=locations.run_dir, open_tap=tap_of)
    try:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(qemu.close)
            host = await stack.enter_async_context(open_host(locations, {"qemu": qemu}, environment={}))
            await host.tenants.create(ALICE, actor="test")
            yield host
            assert left_over(host) == []
    finally:
        shutil.rmtree(directory)


def left_over(host: Host) -> list[str]:
    """What there is of machines: processes, files, devices."""
    running = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    found = [f"process {child.pid}" for child in running if "qemu" in child.name()]
    found += [str(path) for path in host.locations.state_dir.glob("builds/*")]
    found += [str(path) for path in (*host.locations.run_dir.glob("b/*"), *host.locations.secrets_dir.glob("*"))]
    found += [str(path) for path in cache().glob("nix/build-*")]
    return found + [f"device {name}" for _, name in socket.if_nameindex() if name.startswith(("tn", "br-tenant"))]


async def pool_of(host: Host, directory: Path, script: str = SCRIPT) -> Pool:
    """A pool whose flake is in a directory of this host."""
    directory.mkdir()
    (directory / "flake.nix").write_text(FLAKE % IMAGE)
    (directory / "image.sh").write_text(script)
    spec = PoolSpec(pool_id=WORKERS, role=Role.WORKER, flake=f"path:{directory}")
    return await host.pools.create(ALICE, spec, actor="test")


def test_the_machines_image_has_nix_and_no_openclaw(image_in_advance: Path) -> None:
    manifest = Manifest.read(image_in_advance)
    assert (manifest.role, manifest.node, manifest.openclaw) == ("builder", "", "")
    assert {"nix-bin", "git", "busybox-static"} <= manifest.packages.keys()


async def test_a_flake_is_built_in_a_machine_and_its_image_arrives(host: Host, tmp_path: Path) -> None:
    pool = await pool_of(host, tmp_path / "flake")
    told: list[str] = []
    pool = await host.images.build(pool, actor="test", progress=lambda text, **_: told.append(text))
    directory = host.images.path(pool.revision)
    assert sorted(path.name for path in directory.iterdir()) == sorted([*FILES, MANIFEST])
    assert (directory / "vmlinux").read_bytes() == b"\x7fELFkernel"
    assert (directory / "rootfs.erofs").stat().st_size == 1024 + 4 + 3_000_000
    inside = (directory / "initrd").read_text()
    assert "nixbld" in inside, "it was not built in Nix's sandbox"
    assert "eth0" not in inside, "the sandbox had a network"
    source = host.images.manifest(pool.revision).source
    assert source is not None
    assert source.url.startswith(f"path:{tmp_path}/flake?")
    assert source.attribute == f"packages.x86_64-linux.{IMAGE}"
    assert told[0].startswith("building the image with nix: the pool names the flake")
    assert "in a machine (qemu)" in told[0]
    assert {"booting a machine to build in"} <= set(told)
    assert any(text.startswith("copying the image") for text in told)


async def test_a_build_that_fails_in_a_machine_tells_its_last_lines(host: Host, tmp_path: Path) -> None:
    pool = await pool_of(host, tmp_path / "flake", "echo one; echo two >&2; exit 3")
    with pytest.raises(MvmError, match=r"failed.*one / two$") as failed:
        await host.images.build(pool, actor="test", progress=lambda *_, **__: None)
    log = Path((failed.value.hint or "").removeprefix("the whole log is "))
    assert "tenant> one\n" in log.read_text()
    assert host.images.in_use() == frozenset()


async def test_what_is_not_offered_is_told_and_who_gives_up_ends_it(host: Host, tmp_path: Path) -> None:
    """Both are seen in one machine each; the second has begun to build when it is given up."""
    pool = await pool_of(host, tmp_path / "flake", "echo begun; while :; do :; done")
    python = pool.model_copy(update={"profile": "python"})
    with pytest.raises(MvmError, match="has no package 'tenant-python'") as refused:
        await host.images.build(python, actor="test", progress=lambda *_, **__: None)
    assert refused.value.hint == f"what it offers for {os.uname().machine}-linux: {IMAGE}"
    assert left_over(host) == []

    def give_up(text: str, **_: object) -> None:
        if text == "building derivations with Nix":
            host.images._closing.set()

    with pytest.raises(MvmError, match="the agent ends"):
        await host.images.build(pool, actor="test", progress=give_up)
