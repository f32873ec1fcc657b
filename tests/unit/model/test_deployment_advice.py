"""What a deployment is told about services of its own host."""

import pytest

from mvm.model.deployment import Deployment, loopback_port, unenforced_limits, unreachable_services
from mvm.model.manifest import new_deployment
from mvm.openclaw.template import OPENCLAW


def deployment(egress: object, url: str = "http://127.0.0.1:8080") -> Deployment:
    made = new_deployment("alice", template=OPENCLAW)
    settings = made.openclaw.model_copy(update={"provider_base_url": url})
    pools = tuple(pool.model_copy(update={"egress": egress}) for pool in made.pools)
    return made.model_copy(update={"openclaw": settings, "pools": pools})


def test_a_provider_on_this_host_has_to_be_listed() -> None:
    (note,) = unreachable_services(deployment("internet"))
    assert "provider_base_url" in note
    assert "'workers'" in note
    assert "'host:8080'" in note


def test_a_listed_one_is_fine() -> None:
    assert unreachable_services(deployment(("host:8080",))) == []


def test_a_provider_elsewhere_is_fine() -> None:
    assert unreachable_services(deployment("internet", "https://api.example.com")) == []


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://localhost", 443),
        ("http://127.1.2.3", 80),
        ("http://[::1]:7", 7),
        ("http://10.0.0.1:7", None),
        (None, None),
    ],
)
def test_the_port_of_a_loopback_url(url: str | None, port: int | None) -> None:
    assert loopback_port(url) == port


@pytest.mark.parametrize(
    ("enforced", "named"),
    [
        ([], ["disk_mib_per_second", "network_mib_per_second"]),
        (["disk"], ["network_mib_per_second"]),
        (["disk", "network"], []),
    ],
)
def test_a_limit_that_the_runtime_does_not_enforce_is_named(enforced: list[str], named: list[str]) -> None:
    made = new_deployment("alice", template=OPENCLAW)
    limits = {"disk_mib_per_second": 50, "network_mib_per_second": 5}
    pools = tuple(pool.model_copy(update=limits) if pool.pool_id == "workers" else pool for pool in made.pools)
    notes = unenforced_limits(made.model_copy(update={"pools": pools}), enforced)
    assert [note.split("`")[1] for note in notes] == named
    assert all("'workers'" in note for note in notes)
