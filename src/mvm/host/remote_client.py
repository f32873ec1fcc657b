"""The client of an agent on another host: the same calls as on this one, by TLS 1.3 and certificates (CONTRACT 15)."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path

from mvm.host.client import CONNECT_TIMEOUT, AgentClient
from mvm.host.endpoints import SCHEME, Endpoint
from mvm.host.locations import Locations
from mvm.model.errors import MvmError, Refused, TimedOut, Unavailable
from mvm.security.identities import CLIENT_FILE, client_context
from mvm.wire.frames import API_FRAME_LIMIT, FrameError, FrameFault

_ASK_FOR_ANOTHER = "have another one issued on the agent's host: `mvm agent certs issue NAME --out DIR`"


def remote_client(locations: Locations, endpoint: Endpoint) -> RemoteClient:
    """A client of the agent at `endpoint`, by the certificate that the settings name."""
    directory = locations.certs_dir or locations.state_dir
    return RemoteClient(endpoint, directory / CLIENT_FILE)


class RemoteClient(AgentClient):
    """Calls to the agent that listens at an address, under the name in an identity file."""

    def __init__(self, endpoint: Endpoint, identity: Path, *, connect_timeout: float = CONNECT_TIMEOUT) -> None:
        super().__init__(identity, connect_timeout=connect_timeout)
        self.endpoint = endpoint
        self._identity = identity
        self._context: ssl.SSLContext | None = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        where = f"{SCHEME}{self.endpoint}"
        self._context = self._context or client_context(self._identity)
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await asyncio.open_connection(
                    self.endpoint.host,
                    self.endpoint.port,
                    ssl=self._context,
                    limit=API_FRAME_LIMIT,
                    ssl_shutdown_timeout=self._connect_timeout,
                )
        except TimeoutError:
            raise TimedOut(
                f"the agent at {where} did not accept a connection within {self._connect_timeout:g} s",
                hint="is the address right, and does a firewall let it through?",
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise Refused(
                f"the agent at {where} is not the one that '{self._identity}' is for: {error.verify_message}",
                hint="does its certificate name this address (`mvm agent certs status` there), and has it expired or "
                "its authority changed?",
            ) from None
        except OSError as error:
            reason = "nobody listens there" if isinstance(error, ConnectionRefusedError) else error.strerror or error
            raise Unavailable(
                f"no agent can be reached at {where}: {reason}",
                hint="does one listen there (`mvm node info` on that host, setting `listen`)?",
            ) from None

    def _broken(self, name: str, error: FrameError) -> MvmError:
        """In TLS 1.3 a certificate is refused when the connection already stands: its end is then the first answer."""
        if error.kind is not FrameFault.CLOSED:
            return super()._broken(name, error)
        if self._expired():
            return Refused(f"the certificate in '{self._identity}' has expired", hint=_ASK_FOR_ANOTHER)
        return Unavailable(
            f"the agent at {SCHEME}{self.endpoint} closed the connection before it answered {name}:"
            f" it ends, or does not accept the certificate in '{self._identity}'",
            hint=f"its log says which; {_ASK_FOR_ANOTHER}",
        )

    def _expired(self) -> bool:
        from mvm.security.certificates import describe_identity  # cryptography, only to find out what went wrong

        return describe_identity(self._identity).expires <= datetime.now(UTC)
