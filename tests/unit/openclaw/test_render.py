"""OpenClaw's configuration: no secret in it, closed where it must be, and nothing that a user changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvm.model.errors import InvalidInput
from mvm.openclaw.render import (
    DEFAULT_MODELS,
    LIVE_SECRETS,
    Place,
    choose_model,
    environment,
    gateway_config,
    worker_config,
)

PLACE = Place(
    port=18789,
    plugin_dir="/opt/mvm/openclaw-plugin",
    state_dir="/data/openclaw",
    workspace="/data/openclaw/workspace",
    home="/data/home",
    config_file="/run/openclaw/openclaw.json",
    secrets_file="/run/openclaw/secrets.json",
    secrets_dir="/run/secrets",
    control_socket="/run/openclaw/control.sock",
    log_file="/data/log/openclaw-own.log",
)
KEYS = ["OPENCLAW_AUTH_TOKEN", "TELEGRAM_BOT_TOKEN", "DISCORD_BOT_TOKEN", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"]

key_sets = st.sets(st.sampled_from(KEYS))


def gateway(keys: Iterator[str] | set[str] | list[str], **given: Any) -> dict[str, Any]:
    rendered = gateway_config(
        PLACE,
        secret_keys=set(keys),
        router_port=18791,
        router_token_file="/run/openclaw/router-token",
        **{"discord_plugin_dir": "/opt/discord", **given},
    )
    return json.loads(json.dumps(rendered))


def worker(keys: set[str] | list[str], **given: Any) -> dict[str, Any]:
    rendered = worker_config(
        PLACE,
        secret_keys=set(keys),
        outbox_port=18792,
        outbox_token_file="/run/openclaw/outbox-token",
        **given,
    )
    return json.loads(json.dumps(rendered))


def references(value: Any) -> Iterator[str]:
    """Keys of every SecretRef in a configuration."""
    if isinstance(value, dict):
        if value.get("source") == "file" and "id" in value:
            assert set(value) == {"source", "provider", "id"}
            yield value["id"].removeprefix("/")
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


@given(keys=key_sets)
def test_a_gateway_is_closed_whatever_channels_it_has(keys: set[str]) -> None:
    config = gateway(keys)
    assert config["gateway"]["bind"] == "loopback"
    assert config["models"]["providers"] == {}, "there is no model to ask in a gateway"
    assert config["tools"]["deny"] == ["*"]
    assert config["cron"]["enabled"] is False
    assert config["plugins"]["entries"]["mvm"]["config"]["role"] == "gateway"
    for channel in config["channels"].values():
        assert channel["groupPolicy"] == "disabled"
        assert channel["configWrites"] is False
        assert channel["mediaMaxMb"] <= 5, "anybody may send files"
    assert config["attachments"]["ttlHours"] <= 24


@given(keys=key_sets)
def test_a_channel_is_there_exactly_when_its_token_is(keys: set[str]) -> None:
    tokens = {"telegram": "TELEGRAM_BOT_TOKEN", "discord": "DISCORD_BOT_TOKEN"}
    config = gateway(keys)
    assert set(config["channels"]) == {name for name, token in tokens.items() if token in keys}
    assert set(config["plugins"]["allow"]) == {"mvm", *config["channels"]}


@given(keys=key_sets, model=st.sampled_from([None, "anthropic/x", "openai/y"]))
def test_every_reference_names_a_live_secret_that_is_given(keys: set[str], model: str | None) -> None:
    keys |= {"OPENCLAW_AUTH_TOKEN", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"}
    for config in (gateway(keys), worker(keys, model=model)):
        named = set(references(config))
        assert "OPENCLAW_AUTH_TOKEN" in named
        assert named <= LIVE_SECRETS & keys


def test_a_gateway_says_nothing_about_the_people_it_serves() -> None:
    assert "bindings" not in gateway(["TELEGRAM_BOT_TOKEN"])
    assert gateway(["TELEGRAM_BOT_TOKEN"])["channels"]["telegram"]["allowFrom"] == ["*"]


def test_each_message_is_dispatched_by_itself() -> None:
    assert gateway(["TELEGRAM_BOT_TOKEN"])["messages"]["inbound"]["debounceMs"] == 0


@pytest.mark.parametrize(
    ("root", "private"),
    [
        ("http://127.0.0.1:8081", True),
        ("http://10.240.1.1:8081", True),
        ("http://localhost:8081", True),
        ("https://api.telegram.org", False),
        ("https://8.8.8.8", False),
    ],
)
def test_only_a_private_api_root_is_let_through_the_address_guard(root: str, private: bool) -> None:
    telegram = gateway(["TELEGRAM_BOT_TOKEN"], telegram_api_root=root)["channels"]["telegram"]
    assert telegram["apiRoot"] == root
    assert ("network" in telegram) is private


def test_discord_without_its_package_is_an_error_with_a_hint() -> None:
    with pytest.raises(InvalidInput, match="Discord") as caught:
        gateway(["DISCORD_BOT_TOKEN"], discord_plugin_dir=None)
    assert caught.value.hint


def test_discord_is_loaded_from_its_package() -> None:
    assert gateway(["DISCORD_BOT_TOKEN"])["plugins"]["load"]["paths"] == [PLACE.plugin_dir, "/opt/discord"]


@pytest.mark.parametrize(
    ("model", "keys", "chosen"),
    [
        (None, ["ANTHROPIC_API_KEY"], DEFAULT_MODELS["anthropic"]),
        (None, ["OPENAI_API_KEY"], DEFAULT_MODELS["openai"]),
        (None, ["OPENAI_API_KEY", "ANTHROPIC_API_KEY"], DEFAULT_MODELS["anthropic"]),
        ("openai/gpt-x", ["ANTHROPIC_API_KEY", "OPENAI_API_KEY"], "openai/gpt-x"),
        ("openrouter/a/b", [], "openrouter/a/b"),
    ],
)
def test_the_model_is_the_one_asked_for_or_the_default_of_whose_key_is_there(
    model: str | None, keys: list[str], chosen: str
) -> None:
    assert "/".join(choose_model(model, keys)) == chosen


@pytest.mark.parametrize("model", ["claude", "/x", "anthropic/", ""])
def test_a_model_without_provider_or_name_is_refused(model: str) -> None:
    with pytest.raises(InvalidInput, match="provider/name"):
        choose_model(model, ["ANTHROPIC_API_KEY"])


def test_a_worker_without_any_key_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        worker([])
    assert "anthropic_key" in str(caught.value.hint)


def test_a_base_url_of_ones_own_replaces_the_providers_catalogue() -> None:
    config = worker(["ANTHROPIC_API_KEY"], model="anthropic/mine", provider_base_url="http://127.0.0.1:1")
    provider = config["models"]["providers"]["anthropic"]
    assert config["models"]["mode"] == "replace"
    assert provider["baseUrl"] == "http://127.0.0.1:1"
    assert [model["id"] for model in provider["models"]] == ["mine"]
    assert config["agents"]["defaults"]["model"]["primary"] == "anthropic/mine"


def test_a_worker_has_one_channel_and_its_own_housekeeping_is_off() -> None:
    config = worker(["ANTHROPIC_API_KEY"])
    assert config["channels"] == {"mvm": {"enabled": True}}
    assert config["agents"]["defaults"]["heartbeat"] == {"every": "0m"}
    assert config["agents"]["defaults"]["utilityModel"] == ""
    assert config["plugins"]["slots"]["memory"] == "none"
    assert config["models"]["catalogRefresh"] == {"enabled": False}
    assert config["update"] == {"checkOnStart": False}
    assert config["skills"]["workshop"]["autonomous"]["mode"] == "off"


def test_the_environment_holds_no_secret_and_leaves_the_configuration_alone() -> None:
    variables = environment(PLACE)
    assert not set(variables) & LIVE_SECRETS
    assert variables["OPENCLAW_CONFIG_READONLY"] == "1"
    assert variables["OPENCLAW_CONFIG_PATH"] == PLACE.config_file
