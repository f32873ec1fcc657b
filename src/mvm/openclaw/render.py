"""OpenClaw's configuration as mvm writes it: pure functions from values to the content of `openclaw.json`.

No secret is ever in it. Every credential is a SecretRef into the file `/run/openclaw/secrets.json`, which OpenClaw
reads again on `secrets.reload`; so a rotated key counts without a restart. Users are not in it either: the gateway's
routing is mvm's own table (ADR 1), and adding or removing a person leaves this file as it is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import TypeAlias
from urllib.parse import urlsplit

from mvm.model.errors import InvalidInput

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"

PLUGIN_ID = "mvm"
# The worker's only channel, served by the plugin: it leads to the person through the outbox and the gateway.
CHANNEL = "mvm"
SECRETS_PROVIDER = "mvm"
MAX_MEDIA_MIB = 5
"""Size of one file that a gateway fetches, from strangers too; the plugin hands no larger ones on (images.js)."""
OWN_TOKEN = "OPENCLAW_AUTH_TOKEN"  # noqa: S105 - the name of a key, not a key

# What OpenClaw 2026.9.6 itself picks when a person sets up this provider with an API key.
DEFAULT_MODELS: Mapping[str, str] = {"anthropic": "anthropic/claude-opus-5", "openai": "openai/gpt-6-astra"}

# Secrets that OpenClaw reads through a SecretRef: a new value counts after `secrets.reload`, any other after a restart.
LIVE_SECRETS = frozenset({OWN_TOKEN, "TELEGRAM_BOT_TOKEN", "DISCORD_BOT_TOKEN", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"})


class Provider(StrEnum):
    """Model providers that mvm configures by itself."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"

    @property
    def key_name(self) -> str:
        """Name of the secret that holds its API key."""
        return f"{self.upper()}_API_KEY"

    @property
    def api(self) -> str:
        """Name of its wire protocol in OpenClaw's configuration."""
        return {Provider.ANTHROPIC: "anthropic-messages", Provider.OPENAI: "openai-responses"}[self]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one OpenClaw finds its things; paths as that OpenClaw sees them, without symbolic links."""

    port: int
    plugin_dir: str
    state_dir: str
    workspace: str
    home: str
    config_file: str
    secrets_file: str
    secrets_dir: str
    control_socket: str
    log_file: str


def gateway_config(
    place: Place,
    *,
    secret_keys: Collection[str],
    router_port: int,
    router_token_file: str,
    telegram_api_root: str | None = None,
    discord_plugin_dir: str | None = None,
) -> JsonObject:
    """Configuration of a gateway's OpenClaw: it speaks with channels and never runs a turn.

    A channel is there when its token is among `secret_keys`; `discord_plugin_dir` is the directory of the npm package
    `@openclaw/discord`, needed for Discord. Every sender is let through to the plugin, which asks mvm's router who
    they are.
    """
    channels: JsonObject = {}
    plugins = [PLUGIN_ID]
    load: list[Json] = [place.plugin_dir]
    if "TELEGRAM_BOT_TOKEN" in secret_keys:
        channels["telegram"] = _telegram(telegram_api_root)
        plugins.append("telegram")
    if "DISCORD_BOT_TOKEN" in secret_keys:
        if discord_plugin_dir is None:
            raise InvalidInput(
                "a Discord token is given, but OpenClaw's Discord channel is not installed",
                hint="install @openclaw/discord beside OpenClaw ('make setup'), or remove discord_token from [secrets]",
            )
        channels["discord"] = _discord()
        plugins.append("discord")
        load.append(discord_plugin_dir)
    config = _common(place, plugins=plugins, load=load)
    config["session"] = {"dmScope": "per-channel-peer"}
    config["channels"] = channels
    # Slash commands belong to the worker; each message is a message of its own, whatever comes right after it.
    config["commands"] = {"native": False, "text": False, "nativeSkills": False}
    config["messages"] = {"inbound": {"debounceMs": 0}}
    # The plugin removes the files of each message; this is for those of one that a crash cut short.
    config["attachments"] = {"ttlHours": 24}
    # Should a turn ever begin here all the same: there is no model to ask and no tool to use.
    config["models"] = {"mode": "replace", "providers": {}, "catalogRefresh": {"enabled": False}}
    config["tools"] = {"deny": ["*"]}
    config["cron"] = {"enabled": False}
    # Its watchdog takes a dispatch that waits for a long turn on the worker for a stuck one: ended after 6 minutes.
    config["diagnostics"] = {"enabled": False}
    _plugin(
        config,
        place,
        role="gateway",
        settings={"routerUrl": f"http://127.0.0.1:{router_port}", "routerTokenFile": router_token_file},
    )
    return config


def worker_config(
    place: Place,
    *,
    secret_keys: Collection[str],
    outbox_port: int,
    outbox_token_file: str,
    model: str | None = None,
    provider_base_url: str | None = None,
) -> JsonObject:
    """Configuration of a person's own OpenClaw: it has a model and tools, and no channel but mvm's outbox.

    `model` is `provider/name`; without it the provider whose key is given decides (Anthropic before OpenAI).
    """
    provider, name = choose_model(model, secret_keys)
    config = _common(place, plugins=[PLUGIN_ID, provider], load=[place.plugin_dir])
    models: JsonObject = {"catalogRefresh": {"enabled": False}}
    if provider in tuple(Provider):
        entry: JsonObject = {"apiKey": _ref(Provider(provider).key_name)}
        if provider_base_url is not None:
            entry |= {"baseUrl": provider_base_url, "api": Provider(provider).api, "models": [_model(name)]}
            models["mode"] = "replace"
        models["providers"] = {provider: entry}
    config["models"] = models
    config["channels"] = {CHANNEL: {"enabled": True}}
    # By itself OpenClaw gives some models one tool that runs scripts against all others. Then nothing else sees which
    # tool is used, and a reminder set from a script has no way to the person (worker.js completes it as it is set).
    config["tools"] = {"codeMode": {"enabled": False}}
    # A weekly review of skills by the model, on its own initiative.
    config["skills"] = {"workshop": {"autonomous": {"mode": "off"}}}
    agents = config["agents"]
    assert isinstance(agents, dict)
    defaults = agents["defaults"]
    assert isinstance(defaults, dict)
    # Without a utility model OpenClaw makes no side calls (titles, recaps) that nobody asked or pays for.
    defaults |= {"model": {"primary": f"{provider}/{name}"}, "utilityModel": ""}
    _plugin(
        config,
        place,
        role="worker",
        settings={"outboxUrl": f"http://127.0.0.1:{outbox_port}", "outboxTokenFile": outbox_token_file},
    )
    return config


def choose_model(model: str | None, secret_keys: Collection[str]) -> tuple[str, str]:
    """Provider and name of the model: as asked for, else the default of the provider whose key is there."""
    if model is None:
        for provider in Provider:
            if provider.key_name in secret_keys:
                model = DEFAULT_MODELS[provider]
                break
        else:
            raise InvalidInput(
                "no model provider's key is given",
                hint="add anthropic_key (or openai_key) to [secrets] in the deploy file",
            )
    provider_name, slash, name = model.partition("/")
    if not slash or not provider_name or not name:
        raise InvalidInput(
            f"model {model[:80]!r} is not of the form provider/name",
            hint=f"write for example {DEFAULT_MODELS['anthropic']!r}",
        )
    return provider_name, name


def environment(place: Place, *, heap_mib: int = 512) -> dict[str, str]:
    """What OpenClaw's process gets in its environment besides the secrets (those come from `/run/openclaw/env`)."""
    patience = json.dumps(str(PurePosixPath(place.plugin_dir) / "patience.cjs"))  # quoted as Node reads it
    return {
        "HOME": place.home,
        "OPENCLAW_STATE_DIR": place.state_dir,
        "OPENCLAW_CONFIG_PATH": place.config_file,
        # mvm writes the configuration; OpenClaw only reads it.
        "OPENCLAW_CONFIG_READONLY": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        "OPENCLAW_NO_AUTO_UPDATE": "1",
        "OPENCLAW_DISABLE_BONJOUR": "1",
        # The plugin holds a Telegram update until it is answered; OpenClaw would dispatch it again after five minutes
        # and lose what the person wrote meanwhile.
        "OPENCLAW_TELEGRAM_SPOOLED_HANDLER_TIMEOUT_MS": str(24 * 3600 * 1000),
        # Together these save a sixth of the resident memory (facts, section 1) and cost no start time.
        "MALLOC_ARENA_MAX": "2",
        "NODE_OPTIONS": f"--max-old-space-size={heap_mib} --max-semi-space-size=8 --require {patience}",
    }


def _common(place: Place, *, plugins: list[str], load: list[Json]) -> JsonObject:
    return {
        "gateway": {
            "mode": "local",
            "port": place.port,
            "bind": "loopback",
            "auth": {"mode": "token", "token": _ref(OWN_TOKEN)},
            "controlUi": {"enabled": False},
        },
        "secrets": {"providers": {SECRETS_PROVIDER: {"source": "file", "path": place.secrets_file, "mode": "json"}}},
        "agents": {"defaults": {"workspace": place.workspace, "heartbeat": {"every": "0m"}}},
        "plugins": {
            "allow": list(plugins),
            "load": {"paths": load},
            "slots": {"memory": "none"},
            "entries": {name: {"enabled": True} for name in plugins},
        },
        "discovery": {"mdns": {"mode": "off"}},
        "update": {"checkOnStart": False},
        "logging": {"file": place.log_file, "maxFileBytes": 10 * 1024 * 1024},
    }


def _plugin(config: JsonObject, place: Place, *, role: str, settings: JsonObject) -> None:
    plugins = config["plugins"]
    assert isinstance(plugins, dict)
    entries = plugins["entries"]
    assert isinstance(entries, dict)
    entries[PLUGIN_ID] = {
        "enabled": True,
        "hooks": {"allowConversationAccess": True},
        "config": {
            "role": role,
            "controlSocket": place.control_socket,
            "secretsDir": place.secrets_dir,
            **settings,
        },
    }


def _telegram(api_root: str | None) -> JsonObject:
    channel: JsonObject = {
        "enabled": True,
        "botToken": _ref("TELEGRAM_BOT_TOKEN"),
        "dmPolicy": "open",
        "allowFrom": ["*"],
        "groupPolicy": "disabled",
        "configWrites": False,
        "mediaMaxMb": MAX_MEDIA_MIB,
    }
    if api_root is not None:
        channel["apiRoot"] = api_root
        if _is_private(api_root):
            channel["network"] = {"dangerouslyAllowPrivateNetwork": True}
    return channel


def _discord() -> JsonObject:
    return {
        "enabled": True,
        "token": _ref("DISCORD_BOT_TOKEN"),
        "dmPolicy": "open",
        "allowFrom": ["*"],
        "groupPolicy": "disabled",
        "mediaMaxMb": MAX_MEDIA_MIB,
        "configWrites": False,
    }


def _model(name: str) -> JsonObject:
    """A model behind a base URL of the operator's own: OpenClaw knows nothing about it but this."""
    return {"id": name, "name": name, "contextWindow": 200_000, "maxTokens": 8192, "input": ["text", "image"]}


def _ref(key: str) -> JsonObject:
    return {"source": "file", "provider": SECRETS_PROVIDER, "id": str(PurePosixPath("/") / key)}


def _is_private(url: str) -> bool:
    """True when the URL names an address that is not on the public internet."""
    host = urlsplit(url).hostname or ""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
