"""What the agent says when it begins."""

from __future__ import annotations

import os

import pytest
from structlog.testing import capture_logs

from mvm.host.daemon import tell_of_no_networks


@pytest.mark.parametrize(("user", "level"), [(0, "warning"), (1000, "info")], ids=["root", "a person"])
def test_that_machines_get_no_network_is_a_warning_where_one_was_to_be_expected(
    monkeypatch: pytest.MonkeyPatch, user: int, level: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with capture_logs() as logs:
        tell_of_no_networks("there is no program 'nft'")
    assert [(entry["log_level"], entry["reason"]) for entry in logs] == [(level, "there is no program 'nft'")]
