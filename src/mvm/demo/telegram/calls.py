"""One call of a method, and what all methods that put something into a chat have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from mvm.demo.telegram.entities import parse_text
from mvm.demo.telegram.errors import bad_request
from mvm.demo.telegram.flood import FloodControl
from mvm.demo.telegram.params import Params, Upload
from mvm.demo.telegram.updates import UpdateQueue
from mvm.demo.telegram.world import Bot, Dialog, Json, Message, StoredFile, World

MAX_TEXT = 4096
MAX_CAPTION = 1024
_MAX_BUTTON_DATA_BYTES = 64
_MAX_BUTTONS = 100
_MAX_PHOTO_BYTES = 10 * 1024 * 1024
_MAX_FILE_BYTES = 50 * 1024 * 1024
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF")


@dataclass(frozen=True)
class Call:
    """A method called by a bot whose token was good."""

    method: str
    bot: Bot
    params: Params
    world: World
    queue: UpdateQueue
    flood: FloodControl


@dataclass(frozen=True)
class Described:
    """A result with a description beside it, as setWebhook answers."""

    result: object
    description: str


Handler = Callable[[Call], Awaitable[object]]


def formatted(call: Call, text: str | None, *, entities: str = "entities", limit: int = MAX_TEXT) -> Json:
    """`{"text", "entities"?}` after parsing; 400 for an empty or too long text."""
    if text is None or text == "":
        raise bad_request("message text is empty")
    plain, found = parse_text(text, call.params.text("parse_mode"), call.params.sequence(entities))
    if not plain.strip():
        raise bad_request("text must be non-empty")
    if len(plain) > limit:
        raise bad_request("message is too long")
    content: Json = {"text": plain}
    return content | {"entities": cast(object, found)} if found else content


def captioned(call: Call, params: Params | None = None) -> Json:
    """`{"caption", "caption_entities"?}` after parsing, empty without a caption."""
    given = params or call.params
    caption = given.text("caption")
    if not caption:
        return {}
    plain, found = parse_text(caption, given.text("parse_mode"), given.sequence("caption_entities"))
    if len(plain) > MAX_CAPTION:
        raise bad_request("message caption is too long")
    content: Json = {"caption": plain}
    return content | {"caption_entities": cast(object, found)} if found else content


def reply_markup(params: Params) -> Json | None:
    """The checked `reply_markup`."""
    markup = params.mapping("reply_markup")
    if markup is None:
        return None
    rows = markup.get("inline_keyboard", markup.get("keyboard"))
    if rows is None:
        if markup.get("remove_keyboard") is True or markup.get("force_reply") is True:
            return markup
        raise bad_request("object expected as reply markup")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise bad_request("can't parse inline keyboard: expected an Array of Array of InlineKeyboardButton")
    buttons = [button for row in rows for button in row]
    if len(buttons) > _MAX_BUTTONS:
        raise bad_request("REPLY_MARKUP_TOO_LONG")
    for button in buttons:
        _check_button(button, inline="inline_keyboard" in markup)
    return markup


def _check_button(button: object, *, inline: bool) -> None:
    if not inline and isinstance(button, str):
        return
    if not isinstance(button, dict) or not isinstance(button.get("text"), str):
        raise bad_request('can\'t parse keyboard button: Field "text" must be of type String')
    if not button["text"].strip():
        raise bad_request("can't parse inline keyboard button: button text must be non-empty")
    if not inline:
        return
    actions = set(button) - {"text", "icon_custom_emoji_id", "style"}
    if not actions:
        raise bad_request("can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard")
    data = button.get("callback_data")
    if "callback_data" in button and (
        not isinstance(data, str) or not 1 <= len(data.encode()) <= _MAX_BUTTON_DATA_BYTES
    ):
        raise bad_request("BUTTON_DATA_INVALID")
    url = button.get("url")
    if "url" in button and (not isinstance(url, str) or not url.startswith(("http://", "https://", "tg://"))):
        raise bad_request("BUTTON_URL_INVALID")


def _replied_to(params: Params, dialog: Dialog) -> int | None:
    wanted = params.mapping("reply_parameters")
    if wanted is not None:
        number, optional = wanted.get("message_id"), wanted.get("allow_sending_without_reply") is True
        if not isinstance(number, int):
            raise bad_request("message identifier is not specified")
    elif params.has("reply_to_message_id"):
        number, optional = params.integer("reply_to_message_id"), params.boolean("allow_sending_without_reply")
    else:
        return None
    if number in dialog.messages:
        return number
    if optional:
        return None
    raise bad_request("message to be replied not found")


async def put_message(call: Call, content: Json, params: Params | None = None) -> Message:
    """Send `content` to the chat that the call names: the checks of all send methods, in the API's order."""
    given = params or call.params
    markup = reply_markup(given)
    chat_id, dialog = call.world.writable_chat(call.bot, given.text("chat_id"))
    if chat_id > 0 and given.integer("message_thread_id") not in (0, 1):
        raise bad_request("message thread not found")
    replied = _replied_to(given, dialog)
    call.flood.count(call.bot.id, chat_id)
    inline = markup if markup is not None and "inline_keyboard" in markup else None
    message = call.world.add_message(call.bot, chat_id, call.bot.to_json(), content, from_bot=True, reply_markup=inline)
    message.reply_to = replied
    await call.world.transcript.add(
        bot_id=call.bot.id,
        chat_id=chat_id,
        direction="out",
        kind="message",
        message_id=message.message_id,
        text=text_of(content),
        detail=detail_of(message),
    )
    return message


def shown(call: Call, message: Message) -> Json:
    """The message as an answer: with the message it replies to, as far as that still exists."""
    body = message.to_json()
    dialog = call.world.dialogs.get((call.bot.id, int(str(message.chat["id"]))))
    original = dialog.messages.get(message.reply_to) if dialog and message.reply_to is not None else None
    return body | {"reply_to_message": original.to_json()} if original is not None else body


def text_of(content: Json) -> str | None:
    """Text or caption of a message's content."""
    text = content.get("text", content.get("caption"))
    return text if isinstance(text, str) else None


def detail_of(message: Message) -> Json:
    detail: Json = {"content": message.content}
    if message.reply_markup is not None:
        detail["reply_markup"] = message.reply_markup
    if message.reply_to is not None:
        detail["reply_to"] = message.reply_to
    return detail


def find_message(call: Call, what: str) -> tuple[int, Dialog, Message]:
    """The message that a call names by chat and id; 400 `message to <what> not found`."""
    chat_id, dialog = call.world.writable_chat(call.bot, call.params.text("chat_id"))
    number = call.params.integer("message_id")
    if number <= 0:
        raise bad_request("message identifier is not specified")
    message = dialog.messages.get(number)
    if message is None:
        raise bad_request(f"message to {what} not found")
    return chat_id, dialog, message


def incoming_file(call: Call, field: str, folder: str, *, value: str | None = None) -> StoredFile:
    """The file a call sends: an upload, `attach://name` or a known file's id. URLs are refused: no network here."""
    given = value if value is not None else call.params.text(field)
    upload: Upload | None = call.params.uploads.get(field) if value is None else None
    if given is not None and given.startswith("attach://"):
        upload = call.params.uploads.get(given.removeprefix("attach://"))
        if upload is None:
            raise bad_request(f"can't find the file {given} in the request")
    if upload is not None:
        return _stored_upload(call, upload, folder)
    if not given:
        raise bad_request(f"there is no {field} in the request")
    if given.startswith(("http://", "https://")):
        raise bad_request("failed to get HTTP URL content")
    known = call.world.files.get(given)
    if known is None:
        raise bad_request("wrong remote file identifier specified: Wrong string length")
    return known


def _stored_upload(call: Call, upload: Upload, folder: str) -> StoredFile:
    if not upload.data:
        raise bad_request("file must be non-empty")
    if folder == "photos":
        if len(upload.data) > _MAX_PHOTO_BYTES:
            raise bad_request(f"file is too big: photos are limited to {_MAX_PHOTO_BYTES} bytes")
        if not upload.data.startswith(_MAGIC):
            raise bad_request("IMAGE_PROCESS_FAILED")
    if len(upload.data) > _MAX_FILE_BYTES:
        raise bad_request("file is too big")
    return call.world.store_file(folder, upload.name, upload.content_type, upload.data)
