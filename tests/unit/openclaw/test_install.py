"""OpenClaw is installed whole or not at all, from exactly what the lock names."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mvm.model.errors import MvmError, TimedOut, Unavailable
from mvm.openclaw import install as module
from mvm.openclaw.install import Lock, Progress, collect_garbage, committed_lock, install, installed
from mvm.openclaw.npm_errors import explain
from mvm.openclaw.programs import Programs, find_programs

FAKE_NODE = """#!{python}
import json, os, pathlib, sys, time
if sys.argv[1].endswith("openclaw.mjs"):
    print("OpenClaw", json.loads(pathlib.Path(sys.argv[1]).with_name("package.json").read_text())["version"])
    sys.exit(0)
behaviour = os.environ["FAKE_NPM"]
assert sys.argv[2] == "ci" and "--ignore-scripts" in sys.argv
with open({runs!r}, "a") as runs:
    runs.write("run\\n")
packages = {{k: v for k, v in json.load(open("package-lock.json"))["packages"].items() if k}}
if behaviour == "unreachable":
    sys.exit("npm error code ENOTFOUND\\nnpm error syscall getaddrinfo\\nnpm error request to registry failed")
for path, package in list(packages.items())[: 1 if behaviour in ("incomplete", "hang") else None]:
    os.makedirs(path)
    version = "1.0.0" if behaviour == "old" else package["version"]
    pathlib.Path(path, "package.json").write_text(json.dumps({{"version": version}}))
    pathlib.Path(path, "openclaw.mjs").touch()
if behaviour == "hang":
    time.sleep(600)
"""

TINY = {
    "node_modules/openclaw": {"version": "9.9.9", "integrity": "sha512-a"},
    "node_modules/helper": {"version": "1.2.3", "integrity": "sha512-b"},
}


def lock_of(packages: dict[str, dict[str, str]], version: str = "9.9.9") -> Lock:
    direct = {path.removeprefix("node_modules/"): package["version"] for path, package in packages.items()}
    root = {"name": "tiny", "version": "0.0.0", "dependencies": direct}
    document = {**root, "lockfileVersion": 3, "requires": True, "packages": {"": root, **packages}}
    text = json.dumps(document).encode()
    return Lock(
        version=version,
        digest=hashlib.sha256(text).hexdigest()[:12],
        package_json=json.dumps(root).encode(),
        package_lock=text,
        packages=tuple(packages),
    )


class Installer:
    """A programs directory, and a stand-in for Node and npm that behaves as told."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = tmp_path / "programs"
        self.runs_file = tmp_path / "runs"
        self.runs_file.touch()
        node = tmp_path / "node"
        node.write_text(FAKE_NODE.format(python=sys.executable, runs=str(self.runs_file)))
        node.chmod(0o755)
        self.programs = Programs(node=node, npm=tmp_path / "npm-cli.js", version="24.19.0")
        self.monkeypatch = monkeypatch
        self.seen: list[Progress] = []
        self.behave("well")

    def behave(self, how: str) -> None:
        self.monkeypatch.setenv("FAKE_NPM", how)

    def run(self, lock: Lock | None = None) -> module.Installation:
        lock = lock or lock_of(TINY)
        return install(self.directory, on_progress=self.seen.append, programs=self.programs, lock=lock)

    @property
    def runs(self) -> int:
        return len(self.runs_file.read_text().splitlines())

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "openclaw").iterdir() if path.name != ".lock")


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    return Installer(tmp_path, monkeypatch)


def test_an_installation_is_made_once_and_then_found(installer: Installer) -> None:
    lock = lock_of(TINY)
    assert installed(installer.directory, lock) is None
    made = installer.run()
    assert made.openclaw_dir.joinpath("openclaw.mjs").is_file()
    assert made.root.name == f"9.9.9-{lock.digest}"
    assert installed(installer.directory, lock) == made == installer.run()
    assert installer.runs == 1
    assert installer.seen[0].total == len(TINY)


def test_callers_at_the_same_time_make_one_installation(installer: Installer) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: installer.run(), range(4)))
    assert len(set(results)) == 1
    assert installer.runs == 1


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ("unreachable", Unavailable, "ENOTFOUND.*request to registry failed"),
        ("incomplete", MvmError, "1 packages are missing, node_modules/helper"),
        ("old", MvmError, "does not start as 9.9.9"),
    ],
)
def test_a_failed_installation_leaves_nothing_and_the_next_one_works(
    installer: Installer, behaviour: str, error: type[MvmError], message: str
) -> None:
    installer.behave(behaviour)
    with pytest.raises(error, match=message) as caught:
        installer.run()
    assert caught.value.hint
    assert installer.left() == []
    installer.behave("well")
    assert installer.run().root.is_dir()


def test_an_npm_that_hangs_is_ended_and_named(installer: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    installer.behave("hang")
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"with [01] of 2 packages"):
        installer.run()
    assert time.monotonic() - began < 60
    assert installer.left() == []


def test_a_full_disk_is_said_before_anything_is_downloaded(
    installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEEDED_DISK_MIB", 10**9)
    with pytest.raises(Unavailable, match="MiB free") as caught:
        installer.run()
    assert "MVM_PROGRAMS_DIR" in str(caught.value.hint)
    assert installer.runs == 0


def test_what_a_killed_installer_left_is_removed(installer: Installer) -> None:
    left_over = installer.directory / "openclaw/.staging-killed"
    left_over.mkdir(parents=True)
    installer.run()
    assert len(installer.left()) == 1


def test_old_versions_go_when_nobody_uses_them(installer: Installer) -> None:
    home = installer.directory / "openclaw"
    week_old = time.time() - module.UNUSED_DAYS * 86400 - 60
    for name in ("1-unused", "2-fresh", "3-running"):
        (home / name).mkdir(parents=True)
        manifest = home / name / "installation.json"
        manifest.write_text("{}")
        if name != "2-fresh":
            os.utime(manifest, (week_old, week_old))
    (home / "notes").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        env={"MVM_OPENCLAW_DIR": str(home / "3-running/node_modules/openclaw")},
    ) as user:
        assert [path.name for path in collect_garbage(home, keep="4-new")] == ["1-unused"]
        user.communicate()
    assert installer.left() == ["2-fresh", "3-running", "notes"]


def test_the_committed_lock_names_every_package_by_hash_and_no_host() -> None:
    lock = committed_lock()
    wanted = json.loads(lock.package_json)["dependencies"]
    assert wanted["openclaw"] == lock.version
    packages = json.loads(lock.package_lock)["packages"]
    assert packages[""]["dependencies"] == wanted
    bundled = {path for path, package in packages.items() if package.get("inBundle")}
    assert [p for p, package in packages.items() if p and p not in bundled and "integrity" not in package] == []
    assert not re.search(rb"https?://", lock.package_json + lock.package_lock)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("EINTEGRITY", "not what mvm's lock says"),
        ("ENOSPC", "disk is full"),
        ("EAI_AGAIN", "HTTPS_PROXY"),
        ("SELF_SIGNED_CERT_IN_CHAIN", "NODE_EXTRA_CA_CERTS"),
        ("E404", "registry"),
        ("EWHATEVER", "~/.npm/_logs"),
    ],
)
def test_npm_s_last_words_are_explained(code: str, hint: str) -> None:
    words = [f"code {code}", "errno 1", "the reason", "A complete log of this run can be found in: x"]
    error = explain("npm warn old\n" + "\n".join(f"npm error {line}" for line in words), 1)
    assert error.message == f"npm could not install OpenClaw ({code}): the reason"
    assert hint in str(error.hint)
    assert "(status 7): it said nothing" in explain("", 7).message


class Registry(ThreadingHTTPServer):
    """A package registry of this machine that serves two tiny packages."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RegistryHandler)
        entry = "console.log('OpenClaw 9.9.9')\n"
        self.tarballs = {"openclaw": tarball("openclaw", "9.9.9", entry), "helper": tarball("helper", "1.2.3", "")}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class RegistryHandler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        name, _, file = self.path.strip("/").partition("/")
        body = self.server.tarballs[name] if file else json.dumps(self.document(name)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def document(self, name: str) -> dict[str, object]:
        version = {"openclaw": "9.9.9", "helper": "1.2.3"}[name]
        where = {"tarball": f"{self.server.address}{name}/-/{name}-{version}.tgz", "integrity": TINY_HASHES[name]}
        release = {"name": name, "version": version, "dist": where}
        return {"name": name, "versions": {version: release}, "dist-tags": {"latest": version}}

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def tarball(name: str, version: str, entry: str) -> bytes:
    """A package with package.json and an entry file, byte for byte the same each time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in (
            ("package.json", json.dumps({"name": name, "version": version})),
            ("openclaw.mjs", entry),
        ):
            member = tarfile.TarInfo(f"package/{path}")
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content.encode()))
    return gzip.compress(buffer.getvalue(), mtime=0)


def integrity(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


TINY_HASHES = {
    "openclaw": integrity(tarball("openclaw", "9.9.9", "console.log('OpenClaw 9.9.9')\n")),
    "helper": integrity(tarball("helper", "1.2.3", "")),
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("npm_config_registry", server.address)
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
        monkeypatch.setattr(module, "FETCH_RETRIES", 0)
        yield server
        server.shutdown()
        thread.join()


def real_lock() -> Lock:
    return lock_of({path: {**TINY[path], "integrity": TINY_HASHES[path.split("/")[1]]} for path in TINY})


@pytest.mark.node
def test_real_npm_installs_what_the_lock_names(registry: Registry, tmp_path: Path) -> None:
    made = install(tmp_path / "programs", on_progress=lambda _: None, lock=real_lock())
    assert json.loads((made.openclaw_dir / "package.json").read_text())["version"] == "9.9.9"


@pytest.mark.node
def test_real_npm_refuses_a_package_that_was_changed(registry: Registry, tmp_path: Path) -> None:
    registry.tarballs["helper"] = tarball("helper", "1.2.3", "steal()\n")
    with pytest.raises(MvmError, match="EINTEGRITY"):
        install(tmp_path / "programs", on_progress=lambda _: None, lock=real_lock())
    assert [path.name for path in (tmp_path / "programs/openclaw").iterdir()] == [".lock"]


@pytest.mark.node
def test_node_is_the_binary_itself_and_new_enough() -> None:
    programs = find_programs()
    assert programs.node.read_bytes()[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe")
    assert programs.npm.name == "npm-cli.js"
    assert tuple(map(int, programs.version.split(".")[:2])) >= (24, 16)


def test_a_node_that_is_too_old_is_named(tmp_path: Path) -> None:
    node = tmp_path / "bin/node"
    node.parent.mkdir()
    node.write_text("#!/bin/sh\necho v18.0.0\n")
    node.chmod(0o755)
    npm = tmp_path / "lib/node_modules/npm/bin/npm-cli.js"
    npm.parent.mkdir(parents=True)
    npm.touch()
    with pytest.raises(Unavailable, match=r"bin/node is 18\.0\.0"):
        find_programs(str(node))
    with pytest.raises(Unavailable, match="does not run"):
        find_programs(str(tmp_path / "absent"))
