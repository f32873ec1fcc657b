"""The desired state of a host: read strictly, every problem found before anything is changed."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model.desired import DesiredPool, DesiredState, deployment_to_tenant, desired_of, validate_desired
from mvm.model.entities import OPENCLAW_POLICY, DesiredCounts, PoolSpec, RuntimePolicy, TenantNetwork
from mvm.model.errors import InvalidInput
from mvm.model.roles import Role
from mvm.model.validation import ValidationProblems

CONTRACT = json.loads("""
{"schema_version":1,"node_id":"local","prune_unknown_tenants":false,"prune_unknown_pools":false,
 "tenants":[{"tenant_id":"erin","network":{"tenant_net_id":12,"ipv4_subnet":"10.240.12.0/24"},
  "quotas":{"max_vcpus":16,"max_mem_mib":32768,"max_running":8,"max_warm":4,"max_pools":10,
            "max_instances_per_pool":32,"max_disk_gib":500},
  "pools":[{"pool_id":"gateways","flake_ref":"github:openclaw/nix-openclaw","profile":"minimal","role":"gateway",
    "instance_resources":{"vcpus":2,"mem_mib":1024,"data_disk_mib":0},
    "desired_counts":{"running":1,"warm":0,"sleeping":0}}]}]}
""")


def tenant(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"tenant_id": name, **more}


def state(*tenants: Any, **more: Any) -> dict[str, Any]:
    return {"schema_version": 1, "node_id": "local", "tenants": list(tenants), **more}


def problems(document: object, **more: Any) -> list[str]:
    with pytest.raises(ValidationProblems) as refused:
        validate_desired(document, **more)
    return [str(problem) for problem in refused.value.problems]


def test_the_example_of_the_contract_is_read() -> None:
    desired = validate_desired(CONTRACT)
    (erin,) = desired.tenants
    (gateways,) = erin.pools
    assert (desired.node_id, desired.prune_unknown_tenants, desired.prune_unknown_pools) == ("local", False, False)
    assert (erin.tenant_id, str(erin.network and erin.network.subnet)) == ("erin", "10.240.12.0/24")
    assert (erin.quotas.max_pools, erin.quotas.max_disk_gib) == (10, 500)
    assert gateways.spec() == PoolSpec(
        pool_id="gateways",
        role=Role.GATEWAY,
        flake="github:openclaw/nix-openclaw",
        vcpus=2,
        mem_mib=1024,
        desired=DesiredCounts(running=1),
    )


def test_a_state_reads_back_from_its_own_json() -> None:
    desired = validate_desired(CONTRACT)
    assert validate_desired(json.loads(json.dumps(desired.to_json()))) == desired


names = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
policies = st.builds(RuntimePolicy, min_running_seconds=st.integers(0, 900), warm_after_idle_seconds=st.integers(0, 9))
specs = st.builds(
    PoolSpec,
    pool_id=names,
    role=st.sampled_from(Role),
    profile=names,
    flake=st.text(max_size=5),
    vcpus=st.integers(1, 32),
    mem_mib=st.integers(1024, 9000),
    data_disk_mib=st.integers(0, 9000),
    desired=st.builds(DesiredCounts, running=st.integers(0, 100), sleeping=st.integers(0, 100)),
    runtime_policy=policies,
    pinned=st.booleans(),
    secret_scopes=st.none() | st.just({"mail": ("*",)}),
    egress=st.sampled_from(["internet", "none", ("host:80",), ("10.0.0.0/8", "192.0.2.1:80-90,443")]),
)


@given(specs)
def test_pool_settings_survive_their_way_through_a_desired_state(spec: PoolSpec) -> None:
    pool = DesiredPool.from_spec(spec)
    assert pool.spec() == spec
    document = state(tenant(pools=[pool.model_dump(mode="json", exclude_none=True)]))
    assert validate_desired(document).tenants[0].pools[0].spec() == spec


@pytest.mark.parametrize(("role", "least"), [("gateway", 768), ("capability-openclaw", 1024), ("worker", 64)])
def test_a_size_in_which_nothing_works_is_refused_with_its_place(role: str, least: int) -> None:
    def document(mem_mib: int) -> object:
        return state(tenant(pools=[{"pool_id": "w", "role": role, "instance_resources": {"mem_mib": mem_mib}}]))

    validate_desired(document(least))
    with pytest.raises(ValidationProblems) as refused:
        validate_desired(document(least - 1))
    assert "mem_mib" in str(refused.value.problems[0])


def test_a_policy_given_in_part_keeps_the_rest_of_its_role() -> None:
    pool = {"pool_id": "w", "role": "capability-openclaw", "runtime_policy": {"warm_after_idle_seconds": 5}}
    (read,) = validate_desired(state(tenant(pools=[pool]))).tenants[0].pools
    assert read.spec().runtime_policy == OPENCLAW_POLICY.model_copy(update={"warm_after_idle_seconds": 5})


ROUTE = {"name": "r", "match_rule": {"port": 1}, "target": {"pool_id": "w"}}
WORKERS = {"pool_id": "w", "role": "capability-openclaw"}
GATEWAYS = {"pool_id": "g", "role": "gateway"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({**state(), "schema_version": 2}, "schema_version: is none of: 1"),
        ({**state(), "prune": True}, "prune: unknown key 'prune'"),
        (state(node_id=""), "node_id: is empty"),
        (state(prune_unknown_pools=1), "prune_unknown_pools: expected true or false"),
        (state(tenant("A")), "tenants[0].tenant_id: tenant id 'A' is not valid"),
        (state(tenant(), tenant()), "tenants[1].tenant_id: tenant 'a' is already at tenants[0]"),
        (state(tenant(network={"tenant_net_id": 0})), "tenants[0].network.tenant_net_id: is too small"),
        (
            state(
                tenant(network={"tenant_net_id": 5}),
                tenant("b", network={"tenant_net_id": 5, "ipv4_subnet": "10.9.9.0/24"}),
            ),
            "tenants[1].network.tenant_net_id: tenant net id '5' is already at tenants[0].network",
        ),
        (
            state(tenant(network={"tenant_net_id": 5, "ipv4_subnet": "10.0.0.0/8"})),
            "tenants[0].network.ipv4_subnet: subnet '10.0.0.0/8' is a /8",
        ),
        (
            state(
                tenant(network={"tenant_net_id": 5}),
                tenant("b", network={"tenant_net_id": 6, "ipv4_subnet": "10.240.5.0/24"}),
            ),
            "tenants[1].network.ipv4_subnet: 10.240.5.0/24 overlaps 10.240.5.0/24 of tenants[0]",
        ),
        (state(tenant(quotas={"max_vcpu": 1})), "tenants[0].quotas.max_vcpu: unknown key 'max_vcpu' (did you mean"),
        (state(tenant(pools=[WORKERS, WORKERS])), "tenants[0].pools[1].pool_id: pool 'w' is already at"),
        (state(tenant(pools=[{**WORKERS, "role": "x"}])), "tenants[0].pools[0].role: role 'x' is unknown"),
        (
            state(tenant(pools=[{**WORKERS, "desired_counts": {"warm": 101}}])),
            "tenants[0].pools[0].desired_counts.warm: is too large: it may be at most 100",
        ),
        (
            state(tenant(pools=[{**WORKERS, "instance_resources": {"vcpus": 0}}])),
            "tenants[0].pools[0].instance_resources.vcpus: is too small",
        ),
        (
            state(tenant(pools=[{**WORKERS, "routing_table": {"routes": [ROUTE, {**ROUTE, "name": "s"}]}}])),
            "tenants[0].pools[0].routing_table: routes[1] matches the same as routes[0]",
        ),
        (
            state(tenant(pools=[{**GATEWAYS, "routing_table": {"routes": [ROUTE]}}])),
            "tenants[0].pools[0].routing_table.routes[0].target.pool_id: the tenant has no pool 'w'",
        ),
        (
            state(tenant(pools=[WORKERS], users=[{"user_id": "u", "pool_id": "x"}])),
            "tenants[0].users[0].pool_id: there is no pool 'x'",
        ),
        (
            state(tenant(pools=[WORKERS], users=[{"user_id": "u", "pool_id": "w"}] * 2)),
            "tenants[0].users[1].user_id: user 'u' is already at tenants[0].users[0]",
        ),
        (
            state(tenant(pools=[GATEWAYS], gateway_tenant="hub")),
            "tenants[0].pools[0]: the tenant is served by 'hub' and has a gateway pool of its own",
        ),
        (state(tenant(gateway_tenant="a")), "tenants[0].gateway_tenant: a tenant cannot be served by itself"),
        (
            state(tenant(pools=[{**WORKERS, "role": "capability-openclow"}], users=[{"user_id": "u", "pool_id": "w"}])),
            "tenants[0].pools[0].role: role 'capability-openclow' is unknown",
        ),
        (
            state(tenant(pools=[{**GATEWAYS, "role": "gatway"}], accepts=["b"])),
            "tenants[0].pools[0].role: role 'gatway' is unknown",
        ),
        (state(tenant(accepts=["b"])), "tenants[0].accepts: it accepts others but has no gateway pool"),
    ],
)
def test_a_wrong_state_is_refused_with_the_path(document: dict[str, Any], said: str) -> None:
    (only,) = problems(document)
    assert said in only


def test_a_tenant_may_not_overlap_the_hosts_own_networks() -> None:
    document = state(tenant(network={"tenant_net_id": 5}))
    assert validate_desired(document, host_networks={"lan": "192.168.0.0/16"})
    (only,) = problems(document, host_networks={"eth0": "10.240.0.7/16"})
    assert "overlaps 10.240.0.0/16 of eth0" in only


def test_people_whom_one_gateway_serves_may_not_share_an_address() -> None:
    def served(name: str, by: str) -> dict[str, Any]:
        users = [{"user_id": "u", "pool_id": "w", "telegram": ["1"]}]
        return tenant(name, pools=[WORKERS], users=users, gateway_tenant=by)

    assert validate_desired(state(served("a", "hub"), served("b", "other")))
    (only,) = problems(state(served("a", "hub"), served("b", "hub")))
    assert "tenants[1].users[0].telegram: telegram:1 is also an address of tenants[0].users[0]" in only


def test_a_problem_in_one_place_hides_none_in_another() -> None:
    broken = tenant(network={"tenant_net_id": 5, "x": 1}, pools=[{"pool_id": 3}, WORKERS, WORKERS], users=7)
    found = problems(state(broken, tenant(network={"tenant_net_id": 5}), 8, extra=1))
    for said in (
        "tenants[0].network.x",
        "tenants[0].pools[0].pool_id",
        "tenants[0].pools[2].pool_id",
        "tenants[0].users",
        "tenants[1].tenant_id",
        "tenants[1].network.tenant_net_id",
        "tenants[2]",
        "extra",
    ):
        assert any(problem.startswith(f"{said}: ") for problem in found), said
    assert len(found) == len(set(found))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(anything)
def test_any_json_is_a_state_or_refused(document: object) -> None:
    with contextlib.suppress(InvalidInput):
        assert isinstance(validate_desired(document), DesiredState)


FULL = state(
    tenant(
        network={"tenant_net_id": 1, "ipv4_subnet": "10.240.1.0/24"},
        pools=[{**WORKERS, "routing_table": {"routes": [ROUTE]}}, GATEWAYS],
        users=[{"user_id": "u", "pool_id": "w", "telegram": ["1"]}],
    )
)


def spots(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(spot for key, inner in entries for spot in spots(inner, (*at, key)))]


@given(st.sampled_from(spots(FULL)[1:]), anything)
def test_any_damage_to_a_state_is_refused_or_harmless_but_never_a_crash(spot: tuple[str | int, ...], junk: Any) -> None:
    document = copy.deepcopy(FULL)
    inner: Any = document
    for key in spot[:-1]:
        inner = inner[key]
    inner[spot[-1]] = junk
    with contextlib.suppress(InvalidInput):
        validate_desired(document)


def test_what_is_not_json_at_all_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for document in (object(), {1, 2}, {"tenants": deep}):
        with pytest.raises(InvalidInput):
            validate_desired(document)


# From a deployment


def test_a_deployment_becomes_a_tenant_and_back(load_deploy) -> None:
    deployment = load_deploy('[gateway]\naccepts = ["bob"]\n[openclaw]\nmodel = "a/b"\n[[users]]\nid = "kim"\n')
    wanted = deployment_to_tenant(deployment)
    desired = validate_desired(desired_of({wanted.tenant_id: wanted}).to_json())
    (read,) = desired.tenants
    assert tuple(pool.spec() for pool in read.pools) == deployment.pools
    assert (read.users, read.quotas, read.accepts) == (deployment.users, deployment.quotas, deployment.accepts)
    assert read.openclaw == deployment.openclaw
    assert read.network is None


def test_no_secret_source_is_part_of_a_desired_state(load_deploy) -> None:
    deployment = load_deploy('[secrets]\nanthropic_key = { file = "hunter" }\n')
    assert "hunter" not in deployment_to_tenant(deployment).model_dump_json()


HERE = TenantNetwork(tenant_net_id=7, ipv4_subnet="192.168.7.0/24")


@pytest.mark.parametrize(
    ("asked", "now", "then"),
    [
        ("", None, (None, None)),
        ("", HERE, (7, "192.168.7.0/24")),
        ("net_id = 7", HERE, (7, "192.168.7.0/24")),
        ("net_id = 9", HERE, (9, None)),
        ("net_id = 9", None, (9, None)),
        ("subnet = '10.9.9.0/24'", HERE, (7, "10.9.9.0/24")),
        ("subnet = '10.9.9.0/24'", None, (None, "10.9.9.0/24")),
    ],
)
def test_a_tenant_keeps_its_network_unless_another_is_asked_for(load_deployment, asked, now, then) -> None:
    text = f"[tenant]\nid = 'a'\n{asked}\n[[pools]]\nid = 'p'\n"
    network = deployment_to_tenant(load_deployment(text), network=now).network
    assert (network and network.tenant_net_id, network and network.ipv4_subnet) == then
