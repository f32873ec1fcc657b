"""Methods that put a new message into a chat."""

from __future__ import annotations

import struct
from typing import cast

from mvm.demo.telegram.calls import Call, Handler, captioned, formatted, incoming_file, put_message, shown
from mvm.demo.telegram.entities import parse_text
from mvm.demo.telegram.errors import bad_request
from mvm.demo.telegram.params import Params
from mvm.demo.telegram.world import Json, StoredFile

_MAX_RICH_TEXT = 32768
_ACTIONS = frozenset(
    [
        "typing",
        "upload_photo",
        "record_video",
        "upload_video",
        "record_voice",
        "upload_voice",
        "upload_document",
        "choose_sticker",
        "find_location",
        "record_video_note",
        "upload_video_note",
    ]
)


async def send_message(call: Call) -> object:
    return shown(call, await put_message(call, formatted(call, call.params.text("text"))))


async def send_rich_message(call: Call) -> object:
    return shown(call, await put_message(call, rich_content(call)))


def rich_content(call: Call) -> Json:
    """The content of a rich message: exactly one of html, markdown and blocks; shown as its text."""
    rich = call.params.mapping("rich_message")
    if rich is None:
        raise bad_request("rich message must be specified")
    given = [name for name in ("html", "markdown", "blocks") if rich.get(name)]
    if len(given) != 1:
        raise bad_request("exactly one of the fields html, markdown, or blocks must be used")
    source = rich[given[0]]
    text = source if isinstance(source, str) else "\n".join(_block_texts(source))
    if len(text) > _MAX_RICH_TEXT:
        raise bad_request("message is too long")
    return {"text": text, "rich_message": rich}


def _block_texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _block_texts(item)]
    if isinstance(value, dict):
        return [text for name in ("text", "blocks", "items") for text in _block_texts(value.get(name, []))]
    return []


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG or GIF; of other images a likely size."""
    if data.startswith(b"\x89PNG") and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return int(width), int(height)
    if data.startswith(b"GIF8") and len(data) >= 10:
        width, height = struct.unpack("<HH", data[6:10])
        return int(width), int(height)
    return 1280, 960


def photo_sizes(stored: StoredFile) -> list[Json]:
    """The `photo` field of a message: one size, the original."""
    width, height = image_size(stored.data)
    return [stored.to_json(with_path=False) | {"width": width, "height": height}]


def media_json(kind: str, stored: StoredFile) -> object:
    """The field of a message that describes a file of this kind."""
    if kind == "photo":
        return photo_sizes(stored)
    described = stored.to_json(with_path=False) | {"mime_type": stored.content_type}
    if kind == "document":
        return described | {"file_name": stored.name}
    if kind in ("video", "animation"):
        return described | {"width": 640, "height": 360, "duration": 1, "file_name": stored.name}
    if kind == "video_note":
        return described | {"length": 240, "duration": 1}
    if kind == "sticker":
        return described | {"type": "regular", "width": 512, "height": 512, "is_animated": False, "is_video": False}
    return described | {"duration": 1}


_FOLDERS = {
    "photo": "photos",
    "document": "documents",
    "audio": "music",
    "voice": "voice",
    "video": "videos",
    "animation": "animations",
    "video_note": "video_notes",
    "sticker": "stickers",
}


def _send_file(kind: str) -> Handler:
    async def send(call: Call) -> object:
        caption = captioned(call)
        stored = incoming_file(call, kind, _FOLDERS[kind])
        return shown(call, await put_message(call, {kind: media_json(kind, stored)} | caption))

    return send


async def send_media_group(call: Call) -> object:
    items = call.params.sequence("media")
    if items is None or not 2 <= len(items) <= 10:
        raise bad_request("media group must include 2-10 items")
    contents: list[Json] = []
    for item in items:
        if not isinstance(item, dict) or item.get("type") not in ("photo", "video", "audio", "document"):
            raise bad_request("can't parse InputMedia: unsupported type")
        kind = str(item["type"])
        stored = incoming_file(call, "media", _FOLDERS[kind], value=str(item.get("media", "")))
        contents.append({kind: media_json(kind, stored)} | captioned(call, Params(item)))
    group_id = str(int(call.world.now() * 1000))
    sent = [await put_message(call, content | {"media_group_id": group_id}) for content in contents]
    return [shown(call, message) for message in sent]


async def send_location(call: Call) -> object:
    return shown(call, await put_message(call, {"location": _location(call)}))


async def send_venue(call: Call) -> object:
    title, address = call.params.text("title"), call.params.text("address")
    if not title or not address:
        raise bad_request("venue title and address must be non-empty")
    location = _location(call)
    venue = {"location": location, "title": title, "address": address}
    return shown(call, await put_message(call, {"location": location, "venue": venue}))


def _location(call: Call) -> Json:
    try:
        latitude = float(call.params.text("latitude") or "")
        longitude = float(call.params.text("longitude") or "")
    except ValueError:
        raise bad_request("latitude and longitude are required") from None
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise bad_request("wrong latitude or longitude specified")
    return {"latitude": latitude, "longitude": longitude}


async def send_poll(call: Call) -> object:
    question = call.params.text("question") or ""
    options = call.params.sequence("options") or []
    if not 1 <= len(question) <= 300:
        raise bad_request("poll question must be 1-300 characters long")
    if not 2 <= len(options) <= 12:
        raise bad_request("poll must have 2-12 options")
    texts = [option.get("text") if isinstance(option, dict) else option for option in options]
    if not all(isinstance(text, str) and 1 <= len(text) <= 100 for text in texts):
        raise bad_request("poll options must be 1-100 characters long")
    poll: Json = {
        "id": str(int(call.world.now() * 1000)),
        "question": question,
        "options": [{"text": text, "voter_count": 0} for text in texts],
        "total_voter_count": 0,
        "is_closed": False,
        "is_anonymous": True,
        "type": "regular",
        "allows_multiple_answers": call.params.boolean("allows_multiple_answers"),
    }
    return shown(call, await put_message(call, {"poll": poll}))


async def send_chat_action(call: Call) -> object:
    action = call.params.text("action")
    if action not in _ACTIONS:
        raise bad_request("wrong parameter action in request")
    chat_id, _ = call.world.writable_chat(call.bot, call.params.text("chat_id"))
    await call.world.transcript.add(
        bot_id=call.bot.id, chat_id=chat_id, direction="out", kind="action", detail={"action": action}
    )
    return True


async def send_message_draft(call: Call) -> object:
    """A preview that is gone after 30 seconds: checked and accepted, not kept."""
    if call.params.integer("draft_id") == 0:
        raise bad_request("draft_id must be non-zero")
    text = call.params.text("text")
    if text:
        parse_text(text, call.params.text("parse_mode"), call.params.sequence("entities"))
    call.world.writable_chat(call.bot, call.params.text("chat_id"))
    return True


async def copy_or_forward(call: Call) -> object:
    source = call.world.resolve_chat(call.bot, call.params.text("from_chat_id"))
    original = call.world.dialog(call.bot, source).messages.get(call.params.integer("message_id"))
    copying = call.method == "copyMessage"
    if original is None:
        raise bad_request(f"message to {'copy' if copying else 'forward'} not found")
    origin: Json = {"type": "user", "sender_user": original.sender, "date": original.date}
    content = original.content if copying else original.content | {"forward_origin": cast(object, origin)}
    message = await put_message(call, content)
    return {"message_id": message.message_id} if copying else shown(call, message)


METHODS: dict[str, Handler] = {
    "sendMessage": send_message,
    "sendRichMessage": send_rich_message,
    "sendMessageDraft": send_message_draft,
    "sendPhoto": _send_file("photo"),
    "sendDocument": _send_file("document"),
    "sendAudio": _send_file("audio"),
    "sendVoice": _send_file("voice"),
    "sendVideo": _send_file("video"),
    "sendVideoNote": _send_file("video_note"),
    "sendAnimation": _send_file("animation"),
    "sendSticker": _send_file("sticker"),
    "sendMediaGroup": send_media_group,
    "sendLocation": send_location,
    "sendVenue": send_venue,
    "sendPoll": send_poll,
    "sendChatAction": send_chat_action,
    "forwardMessage": copy_or_forward,
    "copyMessage": copy_or_forward,
}
