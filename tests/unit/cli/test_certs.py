"""`mvm agent certs`, what `mvm doctor` says of certificates, and commands for an agent elsewhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import Type

from mvm.cli import checks
from mvm.cli.certificate_checks import agent_certificates
from mvm.cli.checks import Verdict
from mvm.host.api import ApiServer, Call, Params, Request
from mvm.host.endpoints import Endpoint
from mvm.host.locations import Locations, locate
from mvm.host.remote import Identity, RemoteListener
from mvm.security.certificates import Authority, write_client


class Nothing(Params):
    pass


async def node_info(services: None, params: Nothing, call: Call) -> dict[str, Any]:
    return {}


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MVM_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def locations(state_dir: Path, tmp_path: Path) -> Locations:
    return locate({"state_dir": str(state_dir)}, {}, tmp_path)


def test_init_says_what_it_made_and_what_was_there(mvm: Type) -> None:
    assert mvm("agent", "certs", "status").out == "no certificates: `mvm agent certs init`\n"
    made = mvm("agent", "certs", "init", "--address", "192.0.2.7", "--json")
    assert (made.status, made.document["made"]) == (0, ["ca.pem", "agent.pem"])
    assert "192.0.2.7" in made.document["certificates"][1]["addresses"]
    again = mvm("agent", "certs", "init")
    assert again.out.splitlines()[-1] == "everything was there already"


def test_status_shows_names_serials_fingerprints_and_expiry(mvm: Type, tmp_path: Path) -> None:
    mvm("agent", "certs", "init")
    mvm("agent", "certs", "issue", "alice", "--out", str(tmp_path / "out"))
    found = mvm("agent", "certs", "status", "--json").document["certificates"]
    assert [(each["name"], each["kind"], each["state"]) for each in found] == [
        ("ca", "authority", "valid"),
        ("agent", "agent", "valid"),
        ("alice", "client", "valid"),
    ]
    assert all(len(each["fingerprint"]) == 64 and int(each["serial"], 16) for each in found)
    table = mvm("agent", "certs", "status").out.splitlines()
    assert table[0].split() == ["NAME", "KIND", "STATE", "EXPIRES", "SERIAL", "SHA-256", "ADDRESSES"]
    assert found[2]["fingerprint"][:16] in table[3]


def test_what_expires_soon_is_warned_of_with_what_to_type(mvm: Type, state_dir: Path) -> None:
    past = Authority(state_dir, now=lambda: datetime.now(UTC) - timedelta(days=80))
    past.init()
    past.issue("alice")
    assert mvm("agent", "certs", "status").out.splitlines()[-2:] == [
        "warning: agent expires in less than 14 days: `mvm agent certs rotate`",
        "warning: alice expires in less than 14 days: `mvm agent certs issue alice --out DIR`",
    ]
    mvm("agent", "certs", "rotate")
    assert "warning: agent" not in mvm("agent", "certs", "status").out


def test_rotating_the_authority_asks_and_says_who_is_let_in_no_more(mvm: Type, tmp_path: Path) -> None:
    mvm("agent", "certs", "init")
    mvm("agent", "certs", "issue", "alice", "--out", str(tmp_path / "out"))
    asked = mvm("agent", "certs", "rotate", "--ca")
    assert (asked.status, asked.error[1]) == (2, "add --force")
    done = mvm("agent", "certs", "rotate", "--ca", "--force")
    assert "no longer let in: alice; issue them anew" in done.out
    assert len(mvm("agent", "certs", "status", "--json").document["certificates"]) == 2


def test_issue_and_revoke_by_name(mvm: Type, tmp_path: Path) -> None:
    mvm("agent", "certs", "init")
    issued = mvm("agent", "certs", "issue", "alice", "--out", str(tmp_path / "out"), "--json")
    assert issued.document == {"name": "alice", "file": str(tmp_path / "out/client.pem")}
    assert "MVM_AGENT=tls://" in mvm("agent", "certs", "issue", "alice", "--out", str(tmp_path / "out")).out
    assert mvm("agent", "certs", "revoke", "alice").out == "alice is let in no more\n"
    assert mvm("agent", "certs", "revoke", "alice").status == 3


def test_a_certificate_that_cannot_be_handed_over_ends_none(mvm: Type, tmp_path: Path) -> None:
    mvm("agent", "certs", "init")
    mvm("agent", "certs", "issue", "alice", "--out", str(tmp_path / "out"))
    before = mvm("agent", "certs", "status", "--json").document
    (tmp_path / "file").write_text("of somebody")
    typed = mvm("agent", "certs", "issue", "alice", "--out", str(tmp_path / "file"))
    assert (typed.status, str(tmp_path / "file") in typed.error[0], "--out" in typed.error[1]) == (2, True, True)
    assert mvm("agent", "certs", "status", "--json").document == before


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("rotate", 3, "there is no certificate"),
        ("issue alice --out {out}", 3, "there is no certificate"),
        ("issue Alice --out {out}", 2, "is no name of a client"),
        ("init --address not/a/host", 2, "neither an address nor a name"),
    ],
)
def test_errors_say_what_was_wrong(mvm: Type, tmp_path: Path, line: str, status: int, said: str) -> None:
    typed = mvm("agent", "certs", *line.format(out=tmp_path / "out").split())
    assert (typed.status, typed.out) == (status, "")
    assert said in typed.error[0]
    assert typed.error[1]


def test_the_doctor_knows_when_certificates_are_needed_and_when_they_end(locations: Locations) -> None:
    listening = replace(locations, listen=Endpoint("127.0.0.1", 4433))
    assert agent_certificates(locations).verdict is Verdict.OK
    missing = agent_certificates(listening)
    assert (missing.verdict, missing.remedy) == (Verdict.PROBLEM, "mvm agent certs init")
    Authority(locations.state_dir).init()
    now = datetime.now(UTC)
    assert agent_certificates(listening, now).verdict is Verdict.OK
    soon = agent_certificates(listening, now + timedelta(days=80))
    assert (soon.verdict, soon.found.startswith("agent is valid until")) == (Verdict.WARNING, True)
    assert "agent has expired" in agent_certificates(listening, now + timedelta(days=91)).found


def test_a_command_for_an_agent_elsewhere_starts_none_here(
    mvm: Type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state_dir: Path
) -> None:
    monkeypatch.setenv("MVM_AGENT", "tls://127.0.0.1:1")
    monkeypatch.setenv("MVM_CERTS", str(tmp_path / "out"))
    without = mvm("tenant", "list")
    assert (without.status, "there is no certificate" in without.error[0]) == (3, True)
    mvm("agent", "certs", "init")
    mvm("agent", "certs", "issue", "alice", "--out", str(tmp_path / "out"))
    typed = mvm("tenant", "list")
    assert typed.status == 1
    assert typed.error[0] == "no agent can be reached at tls://127.0.0.1:1: nobody listens there"
    assert not (state_dir / "agent.log").exists()


async def test_the_doctor_asks_the_agent_that_commands_use(locations: Locations, tmp_path: Path) -> None:
    elsewhere = replace(locations, agent=Endpoint("127.0.0.1", 0), certs_dir=tmp_path / "out")
    Authority(locations.state_dir).init()
    write_client(tmp_path / "out", Authority(locations.state_dir).issue("alice"))
    silent = await checks.agent(elsewhere)
    assert (silent.verdict, "tls://127.0.0.1:0" in silent.found) == (Verdict.WARNING, True)
    listener = RemoteListener(ApiServer({"NodeInfo": Request(Nothing, node_info)}, None), Identity(locations.state_dir))
    try:
        endpoint = await listener.start(Endpoint("127.0.0.1", 0))
        found = await checks.agent(replace(elsewhere, agent=endpoint))
        assert (found.verdict, found.found) == (Verdict.OK, f"answers at tls://{endpoint}")
    finally:
        await listener.close()
