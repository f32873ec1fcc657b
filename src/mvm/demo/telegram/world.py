"""What exists in the stand-in's Telegram: bots, people, chats, messages and files.

A chat is kept per bot, as with the real service: two bots do not see each other's conversations with one person.
Message and update ids begin at a number made from the clock, so that they go on growing when the stand-in is started
again (a client remembers the ids that it has seen).
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mvm.demo.telegram.errors import bad_request, forbidden
from mvm.demo.telegram.transcript import Transcript

TOKEN_FORM = re.compile(r"[1-9][0-9]{0,15}:[A-Za-z0-9_-]{30,64}")
Json = dict[str, object]

_FIRST_BOT_ID = 7_000_000_001
_IDS_SINCE = 1_750_000_000
_MAX_DOWNLOAD_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True)
class Person:
    """A user of Telegram; the private chat with them has the same id."""

    id: int
    first_name: str
    username: str | None = None
    language_code: str = "en"

    def to_json(self) -> Json:
        shown: Json = {"id": self.id, "is_bot": False, "first_name": self.first_name}
        if self.username:
            shown["username"] = self.username
        return shown | {"language_code": self.language_code}


@dataclass(frozen=True)
class Group:
    """A supergroup that the bots named in it belong to; its id is negative."""

    id: int
    title: str
    members: frozenset[int]


@dataclass
class Message:
    """One message of a chat. `content` holds the fields that say what it is (text, photo, caption, entities...)."""

    message_id: int
    chat: Json
    sender: Json
    from_bot: bool
    date: int
    content: Json
    reply_to: int | None = None
    edit_date: int | None = None
    reply_markup: Json | None = None

    def to_json(self) -> Json:
        shown: Json = {"message_id": self.message_id, "from": self.sender, "chat": self.chat, "date": self.date}
        if self.edit_date is not None:
            shown["edit_date"] = self.edit_date
        shown |= self.content
        if self.reply_markup is not None:
            shown["reply_markup"] = self.reply_markup
        return shown


@dataclass
class Dialog:
    """One bot's view of one chat."""

    chat: Json
    messages: dict[int, Message] = field(default_factory=dict)
    started: bool = False
    blocked: bool = False
    pinned: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class StoredFile:
    """A file that a bot can download while it knows its id."""

    file_id: str
    unique_id: str
    path: str
    content_type: str
    name: str
    data: bytes

    def to_json(self, *, with_path: bool) -> Json:
        shown: Json = {"file_id": self.file_id, "file_unique_id": self.unique_id, "file_size": len(self.data)}
        return shown | {"file_path": self.path} if with_path else shown


@dataclass
class Bot:
    """A bot account. A revoked token answers 401 from then on."""

    id: int
    token: str
    username: str
    first_name: str
    commands: dict[tuple[str, str], list[Json]] = field(default_factory=dict)
    profile: dict[str, str] = field(default_factory=dict)
    open_callbacks: set[str] = field(default_factory=set)

    def to_json(self) -> Json:
        return {"id": self.id, "is_bot": True, "first_name": self.first_name, "username": self.username}


class World:
    """All state but the update queues. `now` gives the wall clock in seconds."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.bots: dict[int, Bot] = {}
        self.people: dict[int, Person] = {}
        self.groups: dict[int, Group] = {}
        self.dialogs: dict[tuple[int, int], Dialog] = {}
        self.files: dict[str, StoredFile] = {}
        self.transcript = Transcript(now)
        self._last_message_id: dict[tuple[int, int], int] = {}
        self._file_count = 0

    def add_bot(self, username: str, token: str | None = None) -> Bot:
        """Register a bot; with `token` that one (its number is the bot's id), else a new one."""
        if token is None:
            number = max([_FIRST_BOT_ID, *(bot_id + 1 for bot_id in self.bots)])
            token = f"{number}:AA{secrets.token_urlsafe(24)[:33].ljust(33, 'x')}"
        if not TOKEN_FORM.fullmatch(token):
            raise ValueError("a bot token looks like 123456789:AAF... (digits, a colon, at least 30 characters)")
        bot = Bot(int(token.partition(":")[0]), token, username, username)
        self.bots[bot.id] = bot
        return bot

    def bot_by_token(self, token: str) -> Bot | None:
        bot = self.bots.get(int(token.partition(":")[0]))
        return bot if bot is not None and secrets.compare_digest(bot.token, token) else None

    def revoke(self, bot: Bot) -> None:
        """Make the bot's token invalid, as BotFather's /revoke does; nothing else is known by the new one."""
        bot.token = f"{bot.id}:AA{secrets.token_urlsafe(24)[:33].ljust(33, 'x')}"

    def person(self, person_id: int, *, first_name: str | None = None, username: str | None = None) -> Person:
        """The person with this id, made on first sight; a name given later replaces the former one."""
        known = self.people.get(person_id, Person(person_id, first_name or f"Person {person_id}", username))
        person = replace(known, first_name=first_name or known.first_name, username=username or known.username)
        self.people[person_id] = person
        return person

    def add_group(self, group_id: int, title: str, members: frozenset[int]) -> Group:
        if group_id >= 0:
            raise ValueError("the id of a group is negative")
        self.groups[group_id] = Group(group_id, title, members)
        return self.groups[group_id]

    def chat_json(self, chat_id: int) -> Json:
        if chat_id < 0:
            return {"id": chat_id, "title": self.groups[chat_id].title, "type": "supergroup"}
        person = self.people[chat_id]
        shown: Json = {"id": chat_id, "first_name": person.first_name}
        if person.username:
            shown["username"] = person.username
        return shown | {"type": "private"}

    def dialog(self, bot: Bot, chat_id: int) -> Dialog:
        """The bot's view of a chat that is known to exist."""
        key = (bot.id, chat_id)
        if key not in self.dialogs:
            self.dialogs[key] = Dialog(self.chat_json(chat_id), started=chat_id < 0)
        return self.dialogs[key]

    def resolve_chat(self, bot: Bot, wanted: str | None) -> int:
        """The chat that a call names by id or @username; 400 when the bot cannot know it."""
        if wanted is None or wanted.strip() == "":
            raise bad_request("chat_id is empty")
        text = wanted.strip()
        if text.startswith("@"):
            for person in self.people.values():
                if person.username and person.username.lower() == text[1:].lower():
                    raise bad_request("chat not found")  # a bot may not write to a person by username
            raise bad_request("chat not found")
        try:
            chat_id = int(text)
        except ValueError:
            raise bad_request("chat not found") from None
        if chat_id not in self.people and chat_id not in self.groups and chat_id not in self.bots:
            raise bad_request("chat not found")
        return chat_id

    def writable_chat(self, bot: Bot, wanted: str | None) -> tuple[int, Dialog]:
        """As `resolve_chat`, and the bot may write there: 403 before the person wrote, or after they blocked it."""
        chat_id = self.resolve_chat(bot, wanted)
        if chat_id in self.bots:
            raise forbidden("bots can't send messages to bots")
        if chat_id < 0 and bot.id not in self.groups[chat_id].members:
            raise forbidden("bot is not a member of the supergroup chat")
        dialog = self.dialog(bot, chat_id)
        if dialog.blocked:
            raise forbidden("bot was blocked by the user")
        if not dialog.started:
            raise forbidden("bot can't initiate conversation with a user")
        return chat_id, dialog

    def next_message_id(self, bot: Bot, chat_id: int) -> int:
        first = int(self.now()) - _IDS_SINCE
        number = max(self._last_message_id.get((bot.id, chat_id), 0) + 1, 1 if first < 1 else 0)
        if (bot.id, chat_id) not in self._last_message_id:
            number = max(first, 1)
        self._last_message_id[(bot.id, chat_id)] = number
        return number

    def add_message(
        self, bot: Bot, chat_id: int, sender: Json, content: Json, *, from_bot: bool, reply_markup: Json | None = None
    ) -> Message:
        """Put a message into the chat as this bot sees it."""
        dialog = self.dialog(bot, chat_id)
        number = self.next_message_id(bot, chat_id)
        message = Message(number, dialog.chat, sender, from_bot, int(self.now()), content, reply_markup=reply_markup)
        dialog.messages[number] = message
        return message

    def store_file(self, folder: str, name: str, content_type: str, data: bytes) -> StoredFile:
        """Keep a file for download."""
        self._file_count += 1
        suffix = name.rpartition(".")[2] if "." in name else "bin"
        stored = StoredFile(
            file_id=f"AgACAgIAAxk{secrets.token_urlsafe(36)}",
            unique_id=f"AQAD{secrets.token_urlsafe(9)}",
            path=f"{folder}/file_{self._file_count}.{suffix}",
            content_type=content_type,
            name=name,
            data=data,
        )
        self.files[stored.file_id] = stored
        return stored

    def downloadable(self, file_id: str | None) -> StoredFile:
        if not file_id:
            raise bad_request("file_id not specified")
        stored = self.files.get(file_id)
        if stored is None:
            raise bad_request("invalid file_id")
        if len(stored.data) > _MAX_DOWNLOAD_BYTES:
            raise bad_request("file is too big")
        return stored
