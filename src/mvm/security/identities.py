"""Who is at the two ends of the network API: TLS contexts from identity files (CONTRACT 15).

An identity file is one PEM file, so that it is replaced whole or not at all: a private key, its certificate, and the
certificate of the authority that issued it, which is also the only one by which the other end is trusted. Making them
is `mvm.security.certificates`'; reading them takes the standard library only.
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from pathlib import Path

from mvm.model.errors import InvalidInput, MvmError, NotFound, Refused

CERTS_DIR = "certs"
"""Where an agent's certificates are, in its state directory."""
AGENT_FILE = "agent.pem"
CLIENTS_DIR = "clients"
CLIENT_FILE = "client.pem"
"""What an operator's identity file is called, in the directory that MVM_CERTS names."""
MAX_FILE_BYTES = 64 * 1024

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_NAME = re.compile("[a-z0-9][a-z0-9-]{0,62}")


def client_name(text: str) -> str:
    """The name of a client, which is the actor in the audit; raises `InvalidInput` for what can be none."""
    if _NAME.fullmatch(text) is None:
        raise InvalidInput(
            f"{text[:80]!r} is no name of a client", hint="write up to 63 small letters, digits and hyphens"
        )
    return text


def certificates_in(text: str) -> list[str]:
    """The certificates of a PEM text, one after the other."""
    return _CERTIFICATE.findall(text)


def server_context(path: Path) -> ssl.SSLContext:
    """For the agent: TLS 1.3 only, and nobody without a client's certificate of its authority.

    Raises `NotFound`, `Refused` or `MvmError` for an identity file that is not there, open to others or damaged.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, path, "make certificates with `mvm agent certs init`")


def client_context(path: Path) -> ssl.SSLContext:
    """For an operator: TLS 1.3 only, and no agent but one of its authority, under the name that it is called by."""
    return _context(
        ssl.PROTOCOL_TLS_CLIENT,
        path,
        "on the agent's host `mvm agent certs issue NAME --out DIR` makes it; let MVM_CERTS name the directory",
    )


def _context(protocol: int, path: Path, remedy: str) -> ssl.SSLContext:
    text = read_private(path, remedy)
    found = certificates_in(text)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(path)
        context.load_verify_locations(cadata=found[-1])
    except (ssl.SSLError, IndexError):
        raise damaged(path, remedy) from None
    return context


def read_private(path: Path, remedy: str) -> str:
    """A file that nobody else may read; `remedy` is what to do when it is not there."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        raise NotFound(f"there is no certificate '{path}'", hint=remedy) from None
    except OSError as error:
        raise MvmError(
            f"the certificate '{path}' cannot be read: {error.strerror or error}",
            hint="run mvm as its owner: it holds a private key",
        ) from error
    if mode & 0o077:
        raise Refused(
            f"the private key in '{path}' is open to others (mode {mode:04o})",
            hint=f"chmod 600 {path}; if somebody may have read it, issue another one",
        )
    return content.decode("ascii", "replace")


def damaged(path: Path, remedy: str) -> MvmError:
    return MvmError(f"'{path}' is not a private key with its certificates", hint=f"remove it; {remedy}")
