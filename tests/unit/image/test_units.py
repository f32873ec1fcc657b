"""The files that the Nix modules read say what the guest's program goes by now."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvm.guest.units import UNITS
from mvm.image import units
from mvm.model.roles import Role

GENERATED = Path(__file__).resolve().parents[3] / "nix/generated"


@pytest.mark.parametrize("name", sorted(units.files()))
def test_it_is_up_to_date(name: str) -> None:
    assert (GENERATED / name).read_text() == units.files()[name], f"nix/generated/{name} is old: make render-nix"


def test_nothing_is_there_that_nothing_makes() -> None:
    assert {path.name for path in GENERATED.iterdir()} == set(units.files())


def test_names_of_units_and_logs_are_their_own() -> None:
    assert len({unit.name for unit in UNITS}) == len({unit.short for unit in UNITS}) == len(UNITS)


def test_reserved_roles_are_roles_without_an_image() -> None:
    assert set(units.RESERVED_ROLES) < set(Role)


def test_a_step_is_waited_for_and_a_service_is_started_again() -> None:
    for unit in UNITS:
        config = units.service_config(unit)
        assert (config["Type"] == "oneshot") == unit.step
        assert ("Restart" in config) != unit.step
        assert ("RemainAfterExit" in config) == unit.step
