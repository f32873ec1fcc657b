"""What is rendered into an instance's configuration, where that depends on the machine around it."""

from dataclasses import replace

import pytest

from mvm.host.configuration import as_seen_by_guest
from mvm.runtime.base import GuestLayout

OWN_LOOPBACK = GuestLayout(run="/r", data="/d", secrets="/s", config="/c", plugin_dir="/p")
MACHINE = replace(OWN_LOOPBACK, host_address="10.240.1.1")


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("http://127.0.0.1:8080/v1", "http://10.240.1.1:8080/v1"),
        ("http://localhost/v1?a=b", "http://10.240.1.1:80/v1?a=b"),
        ("https://[::1]:9000", "https://10.240.1.1:9000"),
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("http://10.0.0.7:8080", "http://10.0.0.7:8080"),
    ],
)
def test_a_service_of_the_host_is_found_at_the_host_s_address(written: str, seen: str) -> None:
    assert as_seen_by_guest(written, MACHINE) == seen
    assert as_seen_by_guest(written, OWN_LOOPBACK) == written


def test_what_is_not_given_stays_so() -> None:
    assert as_seen_by_guest(None, MACHINE) is None
