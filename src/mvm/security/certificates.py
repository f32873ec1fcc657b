"""The certificates of one agent's network API: its own authority, its own certificate, and one for each client.

    <state dir>/certs/          mode 0700, files 0600
        ca.pem                  the authority: key and certificate
        agent.pem               the agent's identity file (see `mvm.security.identities`)
        clients/NAME.pem        the one certificate by which NAME is known, without its key

The key of a client is handed out and not kept. A client is let in only with the certificate that is recorded under its
name, so that issuing another one, or removing the record, ends the one before. Every file is replaced whole; the
running agent looks at them at each new connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mvm.model.errors import InvalidInput, MvmError, NotFound
from mvm.security.identities import (
    AGENT_FILE,
    CERTS_DIR,
    CLIENT_FILE,
    CLIENTS_DIR,
    certificates_in,
    client_name,
    damaged,
    read_private,
)
from mvm.wire.clock import format_timestamp

CA_FILE = "ca.pem"
CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=90)
SOON = timedelta(days=14)
"""A certificate that expires within this time is warned of."""
CLOCK_SKEW = timedelta(minutes=5)
"""How far the clock of the other end may be behind for a new certificate to be valid there."""
_IDENTITY_BYTES = 4096
"""More than an identity file takes."""
ALWAYS_NAMED = ("localhost", "127.0.0.1", "::1")

_REMEDY = "make certificates with `mvm agent certs init`"


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is told of a certificate."""

    name: str
    kind: str
    """`authority`, `agent` or `client`."""
    serial: str
    fingerprint: str
    """SHA-256 of the certificate, in hexadecimal."""
    expires: datetime
    addresses: tuple[str, ...] = ()

    def to_json(self, now: datetime) -> dict[str, object]:
        return {
            "name": self.name,
            "kind": self.kind,
            "serial": self.serial,
            "fingerprint": self.fingerprint,
            "expires": format_timestamp(self.expires),
            "state": expiry(self.expires, now),
            "addresses": list(self.addresses),
        }


def expiry(expires: datetime, now: datetime) -> str:
    """`expired`, `expires soon` or `valid`."""
    if expires <= now:
        return "expired"
    return "expires soon" if expires - now < SOON else "valid"


@dataclass(frozen=True)
class _Pair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class Authority:
    """The certificates in one state directory. Methods raise `MvmError` for files that cannot be read or written."""

    def __init__(
        self,
        state_dir: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        host_name: Callable[[], str] = socket.gethostname,
    ) -> None:
        self.directory = state_dir / CERTS_DIR
        self._now = now
        self._host_name = host_name

    def init(self, addresses: Sequence[str] = ()) -> list[str]:
        """Make what is missing: the authority, and the agent's certificate. Gives the names of the files made.

        An agent's certificate of another authority, which a rotation that was cut short leaves, counts as missing.
        """
        with self._changing():
            made = []
            if not (self.directory / CA_FILE).exists():
                self._make_ca()
                made.append(CA_FILE)
            if not self._agent_is_ours():
                self._make_agent(addresses)
                made.append(AGENT_FILE)
            return made

    def rotate(self, addresses: Sequence[str] = (), *, authority: bool = False) -> list[str]:
        """A new certificate for the agent, with the addresses of the one before unless others are given.

        With `authority` everything begins anew: no certificate that was issued before is let in any more, and the
        clients of the old authority are told, by name.
        """
        with self._changing():
            self._ca()  # there must be something to rotate
            addresses = addresses or self._agent_addresses()
            if authority:
                self._make_ca()
            self._make_agent(addresses)
            ended = self._clients() if authority else []
            for path in ended:
                path.unlink()
            return [path.stem for path in ended]

    def issue(self, name: str) -> str:
        """A new identity for a client, as the text of its file; the one that it had before is not let in any more."""
        name = client_name(name)
        with self._changing():
            ca = self._ca()
            if not self._agent_is_ours():
                raise MvmError("the agent's certificate is missing or of another authority", hint=_REMEDY)
            pair = self._leaf(ca, name, ExtendedKeyUsageOID.CLIENT_AUTH, ())
            write_private(self.directory / CLIENTS_DIR / f"{name}.pem", _pem(pair.certificate))
            return _identity(pair, ca)

    def revoke(self, name: str) -> None:
        """Let a client in no more, from its next connection on; raises `NotFound` for one that has no certificate."""
        path = self.directory / CLIENTS_DIR / f"{client_name(name)}.pem"
        with self._changing():
            try:
                path.unlink()
            except FileNotFoundError:
                raise NotFound(
                    f"no client is called {name!r}", hint="`mvm agent certs status` lists those that there are"
                ) from None

    def described(self) -> list[Described]:
        """All certificates: the authority's, the agent's, the clients' by name. None when there is no authority."""
        files = [(CA_FILE, "authority"), (AGENT_FILE, "agent")]
        with _told():
            found = [
                _described(_certificate(path, read_private(path, _REMEDY)), path.stem, kind)
                for name, kind in files
                if (path := self.directory / name).exists()
            ]
            clients = [
                _described(_certificate(path, path.read_text()), path.stem, "client") for path in self._clients()
            ]
        return [*found, *clients]

    def _clients(self) -> list[Path]:
        return sorted((self.directory / CLIENTS_DIR).glob("*.pem"))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, in directories that nobody else looks into."""
        with _told():
            for directory in (self.directory, self.directory / CLIENTS_DIR):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                directory.chmod(0o700)
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def _ca(self) -> _Pair:
        path = self.directory / CA_FILE
        return _pair(path, read_private(path, _REMEDY))

    def _agent_is_ours(self) -> bool:
        path = self.directory / AGENT_FILE
        if not path.exists():
            return False
        return certificates_in(read_private(path, _REMEDY))[-1:] == [_pem(self._ca().certificate)]

    def _agent_addresses(self) -> tuple[str, ...]:
        path = self.directory / AGENT_FILE
        return _addresses(_certificate(path, read_private(path, _REMEDY))) if path.exists() else ()

    def _make_ca(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _common_name(f"mvm {self._host_name()}"[:64])
        certificate = (
            self._builder(name, name, key, CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_private(self.directory / CA_FILE, _key(key) + _pem(certificate))

    def _make_agent(self, addresses: Iterable[str]) -> None:
        ca = self._ca()
        host = self._host_name()
        # A host may have a name that no certificate can hold; then it is called by its addresses.
        own = [host] if _is_name(host) else []
        names = list(dict.fromkeys([*own, *ALWAYS_NAMED, *addresses]))
        pair = self._leaf(ca, "agent", ExtendedKeyUsageOID.SERVER_AUTH, [_alternative(name) for name in names])
        write_private(self.directory / AGENT_FILE, _identity(pair, ca))

    def _leaf(self, ca: _Pair, name: str, usage: x509.ObjectIdentifier, addresses: Sequence[x509.GeneralName]) -> _Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(_common_name(name), ca.certificate.subject, key, LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
        )
        if addresses:
            builder = builder.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        return _Pair(key, builder.sign(ca.key, hashes.SHA256()))

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, life: timedelta
    ) -> x509.CertificateBuilder:
        now = self._now()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + life)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_client(directory: Path, identity: str) -> Path:
    """Write what `Authority.issue` gave into a directory (made 0700) for handing out; gives the file."""
    path = directory / CLIENT_FILE
    with _told():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, identity)
    return path


def require_place(directory: Path) -> None:
    """Raise `InvalidInput` where `write_client` could not write: for before a certificate is made that ends another."""
    trial = directory / f".{CLIENT_FILE}.{os.getpid()}.trial"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            write_private(trial, "\0" * _IDENTITY_BYTES)
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"the certificate cannot be written to '{directory}': {error.strerror or error}",
            hint="name another directory with --out; nothing was changed",
        ) from error


def describe_identity(path: Path) -> Described:
    """The certificate of an identity file that was handed out; raises `MvmError` when it is none."""
    return _described(_certificate(path, read_private(path, _REMEDY)), path.stem, "client")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MvmError(
            f"the certificates cannot be read or written: {error.filename or ''}: {error.strerror or error}",
            hint="run mvm as the user whom the state directory belongs to, and see that the disk is not full",
        ) from error


def _alternative(written: str) -> x509.GeneralName:
    """An address or name by which the agent is called."""
    try:
        return x509.IPAddress(ip_address(written))
    except ValueError:
        if not _is_name(written):
            raise InvalidInput(
                f"{written[:80]!r} is neither an address nor a name of a host", hint="such as 192.0.2.7 or mvm.example"
            ) from None
        return x509.DNSName(written)


def _is_name(text: str) -> bool:
    labels = text.split(".")
    fits = all(label and len(label) <= 63 and label.replace("-", "a").isalnum() for label in labels)
    return text.isascii() and fits and len(text) <= 253


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _identity(pair: _Pair, ca: _Pair) -> str:
    return _key(pair.key) + _pem(pair.certificate) + _pem(ca.certificate)


def _certificate(path: Path, text: str) -> x509.Certificate:
    """The first certificate of a file, which is its owner's."""
    try:
        return x509.load_pem_x509_certificate(certificates_in(text)[0].encode())
    except (ValueError, IndexError):
        raise damaged(path, _REMEDY) from None


def _pair(path: Path, text: str) -> _Pair:
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except ValueError:
        raise damaged(path, _REMEDY) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise damaged(path, _REMEDY)
    return _Pair(key, _certificate(path, text))


def _described(certificate: x509.Certificate, name: str, kind: str) -> Described:
    return Described(
        name=name,
        kind=kind,
        serial=f"{certificate.serial_number:x}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        expires=certificate.not_valid_after_utc,
        addresses=_addresses(certificate),
    )


def _addresses(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in found)
