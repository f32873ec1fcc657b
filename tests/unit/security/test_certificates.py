"""The authority of an agent, and the certificates that it issues."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mvm.model.errors import InvalidInput, MvmError, NotFound, Refused
from mvm.security.certificates import Authority, describe_identity, expiry, write_client
from mvm.security.identities import client_context, server_context

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, now=lambda: NOW, host_name=lambda: "here")


def test_init_makes_what_is_missing_once(authority: Authority) -> None:
    assert authority.init(["192.0.2.7", "mvm.example"]) == ["ca.pem", "agent.pem"]
    before = authority.described()
    assert authority.init() == []
    assert authority.described() == before
    ca, agent = before
    assert (ca.kind, ca.expires) == ("authority", NOW + timedelta(days=3650))
    assert (agent.kind, agent.expires) == ("agent", NOW + timedelta(days=90))
    assert agent.addresses == ("here", "localhost", "127.0.0.1", "::1", "192.0.2.7", "mvm.example")
    (authority.directory / "agent.pem").unlink()
    assert authority.init() == ["agent.pem"]


def test_nobody_else_can_look_at_the_files(authority: Authority, tmp_path: Path) -> None:
    authority.init()
    handed_out = write_client(tmp_path / "out", authority.issue("alice"))
    for path in [*authority.directory.rglob("*"), authority.directory, handed_out, handed_out.parent]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_the_key_of_a_client_is_not_kept(authority: Authority, tmp_path: Path) -> None:
    authority.init()
    identity = authority.issue("alice")
    assert "PRIVATE KEY" in identity
    assert "PRIVATE KEY" not in (authority.directory / "clients/alice.pem").read_text()
    path = write_client(tmp_path / "out", identity)
    recorded = authority.described()[-1]
    assert (recorded.name, recorded.kind) == ("alice", "client")
    assert describe_identity(path).fingerprint == recorded.fingerprint


def test_rotation_keeps_addresses_and_clients_unless_the_authority_goes_too(authority: Authority) -> None:
    authority.init(["192.0.2.7"])
    authority.issue("alice")
    first = authority.described()
    assert authority.rotate() == []
    second = authority.described()
    assert [one.fingerprint == other.fingerprint for one, other in zip(first, second, strict=True)] == [
        *(True, False, True)
    ]
    assert second[1].addresses == first[1].addresses
    assert authority.rotate(["mvm.example"], authority=True) == ["alice"]
    ca, agent = authority.described()
    assert ca.fingerprint != first[0].fingerprint
    assert "mvm.example" in agent.addresses
    assert "192.0.2.7" not in agent.addresses


def test_an_interrupted_rotation_is_put_right_by_init(authority: Authority, tmp_path: Path) -> None:
    authority.init()
    old = (authority.directory / "agent.pem").read_text()
    authority.rotate(authority=True)
    (authority.directory / "agent.pem").write_text(old)
    with pytest.raises(MvmError, match="of another authority"):
        authority.issue("alice")
    assert authority.init() == ["agent.pem"]


@pytest.mark.parametrize(("days", "state"), [(13, "expires soon"), (15, "valid"), (0, "expired"), (-1, "expired")])
def test_expiry_is_warned_of_fourteen_days_before(days: int, state: str) -> None:
    assert expiry(NOW + timedelta(days=days), NOW) == state


@pytest.mark.parametrize("name", ["", "../x", "Alice", "a b", "-a", "x" * 64])
def test_a_name_that_is_none_is_refused(authority: Authority, name: str) -> None:
    authority.init()
    with pytest.raises(InvalidInput, match="no name of a client"):
        authority.issue(name)


def test_an_address_that_is_none_is_refused_and_nothing_changes(authority: Authority) -> None:
    authority.init()
    before = authority.described()
    with pytest.raises(InvalidInput, match="neither an address nor a name"):
        authority.rotate(["not a host"])
    assert authority.described() == before


def test_what_is_not_there_says_what_to_type(authority: Authority) -> None:
    assert authority.described() == []
    for work in (authority.rotate, lambda: authority.issue("alice")):
        with pytest.raises(NotFound) as caught:
            work()
        assert "mvm agent certs init" in (caught.value.hint or "")
    with pytest.raises(NotFound, match="no client is called 'bob'"):
        authority.revoke("bob")


def test_a_damaged_or_open_file_is_refused(authority: Authority) -> None:
    authority.init()
    path = authority.directory / "agent.pem"
    path.chmod(0o644)
    with pytest.raises(Refused, match="open to others"):
        server_context(path)
    path.chmod(0o600)
    path.write_text("not a certificate")
    with pytest.raises(MvmError, match="is not a private key with its certificates"):
        server_context(path)
    with pytest.raises(MvmError, match="is not a private key with its certificates"):
        authority.described()


def test_the_contexts_insist_on_certificates_and_tls_1_3(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.init()
    server = server_context(authority.directory / "agent.pem")
    client = client_context(write_client(tmp_path / "out", authority.issue("alice")))
    for context in (server, client):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert len(context.get_ca_certs()) == 1
    assert client.check_hostname
