"""The scripts behind `make setup` and `make test`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def orphan() -> Iterator[subprocess.Popen[bytes]]:
    """A process of some other test run that nobody ended."""
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"MVM_TEST_RUN": "run-of-this-test"}
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_that_tests_leave_is_found_named_and_ended(
    orphan: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("test")
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)
    left = module.left_behind("run-of-this-test", tmp_path, module.memory_files(), module.kernel_objects())
    assert [item.split(":")[0] for item in left] == [f"process {orphan.pid}"]
    assert orphan.wait(10) == -9


def test_files_that_tests_leave_are_found_and_pytest_s_own_are_not(tmp_path: Path) -> None:
    module = script("test")
    (tmp_path / "pytest-1").mkdir()
    (tmp_path / "forgotten").touch()
    left = module.left_behind("no-such-run", tmp_path, module.memory_files(), module.kernel_objects())
    assert left == [str(tmp_path / "forgotten")]


def test_devices_and_mounts_that_tests_leave_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("test")
    monkeypatch.setattr(module, "kernel_objects", lambda: {"network device br-tenant-7", "network device br-tenant-8"})
    left = module.left_behind("no-such-run", tmp_path, module.memory_files(), {"network device br-tenant-8"})
    assert left == ["network device br-tenant-7"]


def test_setup_uses_pip_s_index_and_never_downloads_a_python(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("setup")
    monkeypatch.setenv("PIP_INDEX_URL", "mirror")
    monkeypatch.setenv("PIP_CERT", "bundle")
    for name in ("UV_DEFAULT_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    settings = module.environment()
    assert settings["UV_PYTHON_DOWNLOADS"] == "never"
    assert settings["UV_DEFAULT_INDEX"] == "mirror"
    assert settings["SSL_CERT_FILE"] == "bundle"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "chosen")
    assert module.environment()["UV_DEFAULT_INDEX"] == "chosen"


def test_a_step_is_done_again_when_what_it_was_made_from_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("setup")
    monkeypatch.setattr(module, "LOCAL", tmp_path)
    monkeypatch.setattr(module, "STAMPS", tmp_path / "setup.json")
    lock = tmp_path / "lock"
    lock.write_text("one")
    before = module.digest(lock)
    assert module.stamps() == {}
    module.stamp("venv", before)
    assert module.stamps() == {"venv": before}
    lock.write_text("two")
    assert module.digest(lock) != before
    (tmp_path / "setup.json").write_text("broken")
    assert module.stamps() == {}


def test_a_step_that_fails_is_two_lines(tmp_path: Path) -> None:
    """Setup in a copy of the scripts where the index does not exist."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "requirements").mkdir()
    for name in ("scripts/setup.py", "requirements/bootstrap.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    environment = {
        "PATH": os.environ["PATH"],
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }
    # The interpreter below the environment's: uv makes environments without pip.
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    answer = subprocess.run(
        [python, tmp_path / "scripts/setup.py"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 1
    what, hint = answer.stderr.splitlines()[-2:]
    assert what.startswith("error: installing uv failed with status 1")
    assert "pip" in hint


class Apt:
    """In place of running commands: notes them; installing fails `failures` times."""

    def __init__(self, module: ModuleType, failures: int = 0) -> None:
        self.verbs: list[str] = []
        self.installed: list[str] = []
        self.failures = failures
        self.failed = module.StepFailed

    def __call__(self, command: list[str], *, what: str, hint: str) -> None:
        verb = next(word for word in command if word in ("update", "install"))
        self.verbs.append(verb)
        if verb == "install" and self.failures:
            self.failures -= 1
            raise self.failed(what, hint)
        self.installed = [word for word in command if not word.startswith("-")][-2:]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The set-up script on a Debian without two of the packages, as root, with lists of packages."""
    module = script("setup")
    monkeypatch.setattr(module, "is_installed", lambda package: package not in ("mmdebstrap", "lz4"))
    monkeypatch.setattr(module.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(module.os, "geteuid", lambda: 0)
    monkeypatch.setattr(module, "APT_LISTS", tmp_path)
    (tmp_path / "debian_Packages").touch()
    return module


def test_just_the_packages_that_are_missing_are_installed(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "run", apt := Apt(setup))
    setup.virtual_machines()
    assert (apt.verbs, apt.installed) == (["install"], ["mmdebstrap", "lz4"])


def test_lists_of_packages_are_fetched_when_missing_or_old(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup, "run", apt := Apt(setup, failures=1))
    setup.virtual_machines()
    assert apt.verbs == ["install", "update", "install"]
    (tmp_path / "debian_Packages").unlink()
    monkeypatch.setattr(setup, "run", apt := Apt(setup))
    setup.virtual_machines()
    assert apt.verbs == ["update", "install"]


def test_who_is_not_root_is_told_the_command_and_it_goes_on(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(setup, "run", apt := Apt(setup))
    setup.virtual_machines()
    assert apt.verbs == []
    assert "apt-get install --yes --no-install-recommends mmdebstrap lz4" in capsys.readouterr().err


def test_nothing_is_said_or_done_when_all_is_there(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "is_installed", lambda package: True)
    monkeypatch.setattr(setup, "run", apt := Apt(setup))
    setup.virtual_machines()
    assert (apt.verbs, capsys.readouterr().err) == ([], "")
