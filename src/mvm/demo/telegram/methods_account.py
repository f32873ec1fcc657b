"""Methods about the bot itself: who it is, its updates, its commands and its profile."""

from __future__ import annotations

import re

from mvm.demo.telegram.calls import Call, Described, Handler
from mvm.demo.telegram.errors import bad_request
from mvm.demo.telegram.world import Json

_COMMAND = re.compile(r"[a-z0-9_]{1,32}")
_SCOPES = frozenset(
    [
        "default",
        "all_private_chats",
        "all_group_chats",
        "all_chat_administrators",
        "chat",
        "chat_administrators",
        "chat_member",
    ]
)
_MAX_COMMANDS = 100


async def get_me(call: Call) -> object:
    return call.bot.to_json() | {
        "can_join_groups": True,
        "can_read_all_group_messages": False,
        "supports_inline_queries": False,
        "can_connect_to_business": False,
        "has_main_web_app": False,
    }


async def get_updates(call: Call) -> object:
    return await call.queue.poll(call.params)


async def set_webhook(call: Call) -> object:
    return Described(True, await call.queue.set_webhook(call.params))


async def delete_webhook(call: Call) -> object:
    return Described(True, await call.queue.delete_webhook(call.params))


async def get_webhook_info(call: Call) -> object:
    return call.queue.webhook_info()


async def log_out(call: Call) -> object:
    return True


def _scope(call: Call) -> tuple[str, str]:
    scope = call.params.mapping("scope") or {"type": "default"}
    kind = scope.get("type")
    if kind not in _SCOPES:
        raise bad_request("can't parse BotCommandScope: Unsupported type specified")
    if str(kind).startswith("chat"):
        chat = scope.get("chat_id")
        chat_id = call.world.resolve_chat(call.bot, None if chat is None else str(chat))
        kind = f"{kind}:{chat_id}:{scope.get('user_id', '')}"
    language = call.params.text("language_code") or ""
    if language and not re.fullmatch(r"[a-z]{2}", language):
        raise bad_request("language code must be empty or a two-letter ISO 639-1 code")
    return str(kind), language


async def set_my_commands(call: Call) -> object:
    wanted = call.params.sequence("commands")
    if wanted is None:
        raise bad_request("commands must be specified")
    if len(wanted) > _MAX_COMMANDS:
        raise bad_request("BOT_COMMANDS_TOO_MUCH")
    commands: list[Json] = []
    for item in wanted:
        name, about = (item.get("command"), item.get("description")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(about, str):
            raise bad_request('can\'t parse BotCommand: Field "command" and "description" must be of type String')
        if not _COMMAND.fullmatch(name.removeprefix("/")):
            raise bad_request("BOT_COMMAND_INVALID")
        if not 1 <= len(about) <= 256:
            raise bad_request("BOT_COMMAND_DESCRIPTION_INVALID")
        commands.append({"command": name.removeprefix("/"), "description": about})
    call.bot.commands[_scope(call)] = commands
    return True


async def delete_my_commands(call: Call) -> object:
    call.bot.commands.pop(_scope(call), None)
    return True


async def get_my_commands(call: Call) -> object:
    return call.bot.commands.get(_scope(call), [])


_PROFILE_LIMITS = {"name": 64, "description": 512, "short_description": 120}


def _set_profile(field: str) -> Handler:
    async def set_field(call: Call) -> object:
        text = call.params.text(field) or ""
        if len(text) > _PROFILE_LIMITS[field]:
            raise bad_request(f"bot {field.replace('_', ' ')} is too long")
        call.bot.profile[field] = text
        return True

    return set_field


def _get_profile(field: str) -> Handler:
    async def get_field(call: Call) -> object:
        return {field: call.bot.profile.get(field, call.bot.first_name if field == "name" else "")}

    return get_field


async def get_menu_button(call: Call) -> object:
    return {"type": "default"}


async def set_menu_button(call: Call) -> object:
    button = call.params.mapping("menu_button") or {"type": "default"}
    if button.get("type") not in ("default", "commands", "web_app"):
        raise bad_request("MenuButton has unsupported type")
    return True


METHODS: dict[str, Handler] = {
    "getMe": get_me,
    "getUpdates": get_updates,
    "setWebhook": set_webhook,
    "deleteWebhook": delete_webhook,
    "getWebhookInfo": get_webhook_info,
    "logOut": log_out,
    "close": log_out,
    "setMyCommands": set_my_commands,
    "deleteMyCommands": delete_my_commands,
    "getMyCommands": get_my_commands,
    "setMyName": _set_profile("name"),
    "getMyName": _get_profile("name"),
    "setMyDescription": _set_profile("description"),
    "getMyDescription": _get_profile("description"),
    "setMyShortDescription": _set_profile("short_description"),
    "getMyShortDescription": _get_profile("short_description"),
    "getChatMenuButton": get_menu_button,
    "setChatMenuButton": set_menu_button,
}
