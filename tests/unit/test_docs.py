"""The documentation speaks of what there is: errors, commands, pages, settings."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from tests.unit.cli.test_commands import leaves, typable

from mvm.cli.main import COMMANDS
from mvm.host.locations import SETTINGS, locate
from mvm.model import errors
from mvm.model.errors import ExitStatus

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/adr").glob("*.md")])
TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"


@cache
def texts() -> tuple[str, ...]:
    """Every text in the source, with … for what is put in; neighbours that are one text are joined by the parser."""
    found = []
    for path in (ROOT / "src/mvm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def quoted_errors() -> list[str]:
    lines = [line for line in TROUBLESHOOTING.read_text().splitlines() if line.startswith("| ")]
    return [text for line in lines for text in re.findall(r"`([^`]+)`", line.split("|")[1]) if " " in text]


@pytest.mark.parametrize("error", quoted_errors())
def test_an_error_that_the_docs_explain_is_one_that_mvm_says(error: str) -> None:
    words = re.compile(
        ".*".join(re.escape(part.strip()) for part in re.split("…|ENOTFOUND|EINTEGRITY", error)), re.DOTALL
    )
    assert any(words.search(text) for text in texts())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_page_or_its_part_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, part = target.partition("#")
        other = page.parent / name if name else page
        if not other.exists() or (part and part not in anchors(other)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_written_down_exists(page: Path) -> None:
    known = set(leaves())
    nouns = {leaf.split()[0] for leaf in known}
    wrong = []
    text = page.read_text()
    blocks = "".join(re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    inline = re.findall(r"`mvm ([a-z][^`\n]*)`", text)
    for line in [*inline, *re.findall(r"^(?:\$ )?mvm ([a-z].*)$", blocks, re.MULTILINE)]:
        words = line.split()
        candidates = {" ".join(words[:n]) for n in (1, 2, 3)}
        bare = len(words) == 1 or not re.fullmatch("[a-z]+", words[1])
        # `mvm user add|remove|pair` and `mvm tenant` are ways to speak of several.
        if not (candidates & known or (words[0] in nouns and (bare or "|" in words[1]))):
            wrong.append(" ".join(words))
    assert wrong == []


def test_every_command_and_setting_is_written_down_somewhere() -> None:
    everything = "\n".join(page.read_text() for page in PAGES)
    assert [leaf for leaf in leaves() if f"mvm {leaf}" not in everything] == []
    assert [name for name in COMMANDS if f"mvm {name}" not in everything] == []
    assert [name for name in SETTINGS if f"`{name}`" not in everything] == []


def test_the_reference_has_every_option_of_every_command() -> None:
    _, *sections = re.split(r"^### ", (ROOT / "docs/commands.md").read_text(), flags=re.MULTILINE)
    described = {section.split("`")[1]: section for section in sections}
    missing = []
    for leaf, command in typable():
        (text,) = (text for usage, text in described.items() if f"{usage} ".startswith(f"mvm {leaf} "))
        known = re.findall(r"--[a-z0-9-]+", " ".join(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)))
        options = {name for o in command.params if o.param_type_name == "option" for name in o.opts if name[:2] == "--"}
        # Of these the head speaks, once for all commands.
        missing += [f"{leaf} {name}" for name in sorted(options - {"--output", "--json", "--help", *known})]
    assert missing == []


@cache
def raised() -> tuple[tuple[str, ExitStatus], ...]:
    """Every text that is made an error of, with … for what is put in, and the exit status of that error."""
    calls: list[ast.Call] = []
    parents: dict[str, str] = {}
    for path in (ROOT / "src/mvm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.bases and isinstance(node.bases[0], ast.Name):
                parents[node.name] = node.bases[0].id
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                calls.append(node)
    found = []
    for call in calls:
        assert isinstance(call.func, ast.Name)
        kind = call.func.id
        while not hasattr(errors, kind) and kind in parents:
            kind = parents[kind]
        status = getattr(getattr(errors, kind, None), "exit_status", None)
        match call.args[0]:
            case ast.Constant(value=str(text)):
                pass
            case ast.JoinedStr(values=values):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in values)
            case _:
                continue
        if status is not None:
            found.append((text, status))
    return tuple(found)


def claimed_statuses() -> list[tuple[str, int]]:
    """Errors below a heading that says with which status they end."""
    found = []
    for section in re.split(r"^## ", TROUBLESHOOTING.read_text(), flags=re.MULTILINE):
        if (heading := re.match(r".*\(status (\d)\)$", section, re.MULTILINE)) is not None:
            rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
            found += [(text, int(heading[1])) for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return found


@pytest.mark.parametrize(("error", "status"), claimed_statuses())
def test_an_error_ends_with_the_status_that_the_docs_claim(error: str, status: int) -> None:
    assert {ended for text, ended in raised() if error in text} == {status}


def test_the_readme_says_how_one_gets_mvm_and_how_one_is_rid_of_it() -> None:
    readme = (ROOT / "README.md").read_text()
    first = re.findall(r"^```\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[0].splitlines()
    assert first[0].startswith("git clone ")
    assert first[-1] == "make quickstart"
    removal = readme.partition("## Removing it\n")[2].partition("\n## ")[0]
    roots, mine = (locate({}, {"HOME": "/home/me"}, Path("/"), uid=uid) for uid in (0, 1000))
    for place in (roots.state_dir, roots.run_dir, mine.state_dir):
        assert str(place).replace("/home/me", "~") in removal
    for command in ("mvm tenant destroy", "mvm demo --down", "mvm agent stop", "make clean"):
        assert command in removal
