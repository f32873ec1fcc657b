"""One agent keeps the network of a host: two would undo each other's bridges and rules.

The claim is an abstract Unix socket. It belongs to the network namespace, as bridges and rules do, and it is free again
as soon as its holder has ended, however it ended.
"""

from __future__ import annotations

import socket

from mvm.model.errors import Conflict

NAME = "\0mvm-network"


class Claim:
    """Held from `take` to `release`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    @property
    def held(self) -> bool:
        return self._socket is not None

    def take(self) -> None:
        """Claim the network of this host. Idempotent. Raises `Conflict` while another agent holds it."""
        if self._socket is not None:
            return
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            claim.bind(NAME)
        except OSError:
            claim.close()
            raise Conflict(
                "another agent on this host keeps the networks of its tenants",
                hint="end that agent, or use it: `mvm node info` with its MVM_STATE_DIR shows which it is",
            ) from None
        self._socket = claim

    def release(self) -> None:
        """Leave it to others. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
