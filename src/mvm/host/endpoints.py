"""Addresses of the network API, as they are written: `HOST:PORT`, `[::1]:PORT`, `tls://HOST:PORT`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mvm.model.errors import InvalidInput

SCHEME = "tls://"

_WRITTEN = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%]+)\]|(?P<host>[A-Za-z0-9_.-]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Endpoint:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, what: str, where: str) -> Endpoint:
        """`HOST:PORT`; `what` and `where` name in an error the setting and its origin."""
        found = _WRITTEN.fullmatch(text)
        if found is None or int(found["port"]) > 65535:
            raise InvalidInput(
                f"{what} {text[:80]!r} is no address ({where})", hint="write HOST:PORT, such as 192.0.2.7:4433"
            )
        return cls(found["six"] or found["host"], int(found["port"]))
