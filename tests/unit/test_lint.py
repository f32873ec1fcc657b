"""Style, types, import contracts and locks, so that one command proves everything."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MAX_LINES = 450
"""A module is two things when it has more than about 400 lines."""


def check(*command: str) -> None:
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_ruff() -> None:
    check(str(BIN / "ruff"), "check")


def test_format() -> None:
    check(str(BIN / "ruff"), "format", "--check")


@pytest.mark.timeout(600)
def test_types() -> None:
    check(str(BIN / "mypy"))


def test_import_contracts() -> None:
    check(str(BIN / "lint-imports"), "--no-cache")


@pytest.mark.parametrize("room", ["wire", "guest"])
def test_what_runs_in_the_guest_needs_no_package(room: str) -> None:
    allowed = {*sys.stdlib_module_names, "mvm"}
    foreign = []
    for path in (ROOT / "src/mvm" / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            foreign += [f"{path.name}: {name}" for name in names if name.split(".")[0] not in allowed]
    assert foreign == []


def test_no_module_has_grown_into_two() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > MAX_LINES} == {}


def pins(name: str) -> dict[str, str]:
    """Package -> version of a lock."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return {match[1]: match[2] for match in re.finditer(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE)}


@pytest.mark.parametrize("name", ["bootstrap", "runtime", "dev"])
def test_a_lock_was_made_from_this_pyproject(name: str) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from lock import inputs_digest
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    first_lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()[:2]
    assert first_lines[1] == f"# inputs: sha256:{inputs_digest()}", "pyproject.toml has changed: run `make lock`"


@pytest.mark.parametrize("name", ["bootstrap", "runtime", "dev"])
def test_a_lock_has_a_hash_for_every_package_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", "\n" + "\n".join(text.splitlines()[2:]))
    assert [entry.split()[0] for entry in entries if entry.strip() and "--hash=sha256:" not in entry] == []
    assert "://" not in text


def named(requirement: str) -> str:
    """The package of a requirement, as locks write it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ ]", requirement)[0]).lower()


def test_the_locks_agree_and_name_every_requirement() -> None:
    runtime, dev = pins("runtime"), pins("dev")
    assert runtime.items() <= dev.items()
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {named(requirement) for requirement in document["project"]["dependencies"]}
    assert wanted <= runtime.keys()
    group = {named(requirement) for requirement in document["dependency-groups"]["dev"]}
    assert group <= dev.keys()


def test_this_environment_is_the_locked_one() -> None:
    installed = {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in importlib.metadata.distributions()}
    installed.pop("mvm-fleet", None)
    differing = {name: version for name, version in installed.items() if pins("dev").get(name) != version}
    assert differing == {}, "the environment is not what requirements/dev.txt says: run `make setup`"


def test_scripts_say_what_python_they_need() -> None:
    """setup.py is run by whatever `python3` there is: an older one must understand it as far as its version check."""
    ast.parse((ROOT / "scripts/setup.py").read_text(), feature_version=(3, 8))


def test_no_file_names_this_machine() -> None:
    """No absolute path of a developer's machine and no registry's address is committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = "|".join(("pypi" + r"\.org", "pythonhosted" + r"\.org", "registry" + r"\.npmjs", "deb" + r"\.debian"))
    pattern = re.compile(rf"{re.escape(str(ROOT))}(?![\w-])|{hosts}")
    found = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file() and path != Path(__file__):
            found += [name] if pattern.search(path.read_text(errors="ignore")) else []
    assert found == []
