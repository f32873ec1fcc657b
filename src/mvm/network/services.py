"""Services of the host itself, as a guest reaches them: at its bridge's address, where its pool lists `host:PORT`."""

from __future__ import annotations

from ipaddress import IPv4Address
from urllib.parse import urlsplit, urlunsplit

from mvm.model.egress import Egress, host_ports
from mvm.model.errors import InvalidInput

_DEFAULT_PORTS = {"http": 80, "https": 443}


def url_for_guest(url: str, egress: Egress, gateway_ip: str) -> str:
    """The URL that a guest has to use for `url`: one of this host's loopback gets the address of the guest's bridge.

    Any other URL is returned as it is. Raises `InvalidInput` when the guest's pool does not list that port of the host.
    """
    parts = urlsplit(url)
    if not _is_loopback(parts.hostname or ""):
        return url
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    if port not in host_ports(egress):
        raise InvalidInput(
            f"'{url}' is a service of this host, which the pool's instances may not reach",
            hint=f'add \'host:{port}\' to the pool\'s egress, such as egress = ["internet", "host:{port}"]',
        )
    return urlunsplit(parts._replace(netloc=f"{gateway_ip}:{port}"))


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return IPv4Address(name).is_loopback
    except ValueError:
        return False
