"""States, roles, and the errors that go with them."""

from __future__ import annotations

import itertools

import pytest

from mvm.model.errors import (
    Conflict,
    ExitStatus,
    InvalidInput,
    MvmError,
    NotFound,
    QuotaExceeded,
    Refused,
    error_for_code,
)
from mvm.model.roles import Role
from mvm.model.states import State

ALLOWED = {
    "created": {"ready"},
    "ready": {"running", "ready"},
    "running": {"warm", "stopped"},
    "warm": {"running", "sleeping", "stopped"},
    "sleeping": {"running", "stopped"},
    "stopped": {"running"},
    "destroyed": set(),
}
"""CONTRACT 4, but for `any -> destroyed`."""


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_exactly_the_transitions_of_the_contract_are_allowed(before: State, after: State) -> None:
    expected = after in ALLOWED[before] or (after is State.DESTROYED and before is not State.DESTROYED)
    assert before.may_become(after) is expected


def test_a_refused_transition_names_both_states_and_the_instance() -> None:
    with pytest.raises(Conflict, match=r"^Invalid state transition: sleeping -> warm \(a/b/i-00000000\)$"):
        State.SLEEPING.require(State.WARM, who="a/b/i-00000000")


def test_every_state_but_destroyed_has_an_exit() -> None:
    assert all(any(state.may_become(other) for other in State) for state in State if state is not State.DESTROYED)


def test_gateways_come_up_first_and_openclaw_last() -> None:
    ordered = sorted(Role, key=lambda role: role.reconcile_priority)
    assert ordered[:3] == [Role.GATEWAY, Role.BUILDER, Role.WORKER]


def test_an_unknown_role_lists_the_valid_ones() -> None:
    with pytest.raises(InvalidInput) as refused:
        Role.parse("gateways")
    assert all(role in (refused.value.hint or "") for role in Role)


@pytest.mark.parametrize("role", [Role.BUILDER, Role.CAPABILITY_IMESSAGE])
def test_roles_without_drives_have_neither(role: Role) -> None:
    assert not role.has_config_drive
    assert not role.has_secrets_drive


def test_only_a_gateway_is_never_put_to_sleep_by_policy() -> None:
    assert [role for role in Role if not role.may_sleep_by_policy] == [Role.GATEWAY]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MvmError, ExitStatus.FAILED),
        (InvalidInput, ExitStatus.USAGE),
        (NotFound, ExitStatus.NOT_FOUND),
        (Refused, ExitStatus.REFUSED),
        (QuotaExceeded, ExitStatus.REFUSED),
    ],
)
def test_an_error_keeps_its_kind_over_the_wire_and_has_the_exit_status_of_the_contract(error, status) -> None:
    rebuilt = error_for_code(error.code, "what", "do")
    assert type(rebuilt) is error
    assert (rebuilt.message, rebuilt.hint, rebuilt.exit_status) == ("what", "do", status)
