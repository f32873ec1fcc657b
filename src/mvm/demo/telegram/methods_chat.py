"""Methods that change what is in a chat, answer buttons, and tell about chats, people and files."""

from __future__ import annotations

from mvm.demo.telegram.calls import (
    Call,
    Handler,
    captioned,
    detail_of,
    find_message,
    formatted,
    reply_markup,
    shown,
    text_of,
)
from mvm.demo.telegram.errors import bad_request
from mvm.demo.telegram.methods_send import rich_content
from mvm.demo.telegram.world import Bot, Json, Message, World

_MAX_CALLBACK_TEXT = 200
_DELETE_SECONDS = 48 * 3600
_UNCHANGED = (
    "message is not modified: specified new message content and reply markup are exactly the same "
    "as a current content and reply markup of the message"
)


async def _changed(call: Call, message: Message, content: Json) -> object:
    markup = reply_markup(call.params)
    if not message.from_bot:
        raise bad_request("message can't be edited")
    if content == message.content and markup == message.reply_markup:
        raise bad_request(_UNCHANGED)
    chat_id = int(str(message.chat["id"]))
    call.flood.count(call.bot.id, chat_id)
    message.content, message.reply_markup = content, markup
    message.edit_date = int(call.world.now())
    await call.world.transcript.add(
        bot_id=call.bot.id,
        chat_id=chat_id,
        direction="out",
        kind="edit",
        message_id=message.message_id,
        text=text_of(content),
        detail=detail_of(message),
    )
    return shown(call, message)


async def edit_message_text(call: Call) -> object:
    rich = call.params.has("rich_message")
    content = rich_content(call) if rich else formatted(call, call.params.text("text"))
    _, _, message = find_message(call, "edit")
    if "text" not in message.content:
        raise bad_request("there is no text in the message to edit")
    return await _changed(call, message, content)


async def edit_message_caption(call: Call) -> object:
    caption = captioned(call)
    _, _, message = find_message(call, "edit")
    if "text" in message.content:
        raise bad_request("there is no caption in the message to edit")
    kept = {name: value for name, value in message.content.items() if not name.startswith("caption")}
    return await _changed(call, message, kept | caption)


async def edit_message_reply_markup(call: Call) -> object:
    _, _, message = find_message(call, "edit")
    return await _changed(call, message, message.content)


async def delete_message(call: Call) -> object:
    chat_id, dialog, message = find_message(call, "delete")
    if call.world.now() - message.date > _DELETE_SECONDS:
        raise bad_request("message can't be deleted for everyone")
    await _forget(call, chat_id, dialog.messages, message.message_id)
    return True


async def delete_messages(call: Call) -> object:
    chat_id, dialog = call.world.writable_chat(call.bot, call.params.text("chat_id"))
    numbers = call.params.sequence("message_ids")
    if not numbers or len(numbers) > 100:
        raise bad_request("message_ids must hold 1-100 identifiers")
    for number in numbers:
        if isinstance(number, int) and number in dialog.messages:
            await _forget(call, chat_id, dialog.messages, number)
    return True


async def _forget(call: Call, chat_id: int, messages: dict[int, Message], number: int) -> None:
    messages.pop(number)
    await call.world.transcript.add(
        bot_id=call.bot.id, chat_id=chat_id, direction="out", kind="delete", message_id=number
    )


async def pin_or_unpin(call: Call) -> object:
    if call.method == "unpinAllChatMessages" or not call.params.has("message_id"):
        _, dialog = call.world.writable_chat(call.bot, call.params.text("chat_id"))
        if call.method == "pinChatMessage":
            raise bad_request("message identifier is not specified")
        dialog.pinned = [] if call.method == "unpinAllChatMessages" else dialog.pinned[:-1]
        return True
    _, dialog, message = find_message(call, call.method.removesuffix("ChatMessage"))
    dialog.pinned = [number for number in dialog.pinned if number != message.message_id]
    if call.method == "pinChatMessage":
        dialog.pinned.append(message.message_id)
    return True


async def set_message_reaction(call: Call) -> object:
    chat_id, _, message = find_message(call, "react")
    reactions = call.params.sequence("reaction") or []
    if len(reactions) > 1:
        raise bad_request("REACTIONS_TOO_MANY")
    for reaction in reactions:
        if not isinstance(reaction, dict) or reaction.get("type") not in ("emoji", "custom_emoji"):
            raise bad_request("can't parse ReactionType: unsupported type")
        if reaction["type"] == "emoji" and not reaction.get("emoji"):
            raise bad_request("REACTION_INVALID")
    await call.world.transcript.add(
        bot_id=call.bot.id,
        chat_id=chat_id,
        direction="out",
        kind="reaction",
        message_id=message.message_id,
        detail={"reaction": reactions},
    )
    return True


async def answer_callback_query(call: Call) -> object:
    query_id = call.params.text("callback_query_id") or ""
    if len(call.params.text("text") or "") > _MAX_CALLBACK_TEXT:
        raise bad_request("MESSAGE_TOO_LONG")
    if query_id not in call.bot.open_callbacks:
        raise bad_request("query is too old and response timeout expired or query ID is invalid")
    call.bot.open_callbacks.discard(query_id)
    await call.world.transcript.add(
        bot_id=call.bot.id,
        chat_id=int(query_id.partition("-")[0]),
        direction="out",
        kind="callback_answer",
        text=call.params.text("text"),
        detail={"callback_query_id": query_id},
    )
    return True


async def get_file(call: Call) -> object:
    return call.world.downloadable(call.params.text("file_id")).to_json(with_path=True)


async def get_chat(call: Call) -> object:
    chat_id = call.world.resolve_chat(call.bot, call.params.text("chat_id"))
    if chat_id in call.world.bots:
        raise bad_request("chat not found")
    return call.world.dialog(call.bot, chat_id).chat | {"accent_color_id": 0, "max_reaction_count": 11}


def _member(world: World, bot: Bot, chat_id: int, user_id: int) -> Json:
    known = world.bots[user_id].to_json() if user_id in world.bots else None
    if known is None and user_id in world.people:
        known = world.people[user_id].to_json()
    if known is None:
        raise bad_request("user not found")
    inside = user_id in world.groups[chat_id].members if chat_id < 0 else user_id in (chat_id, bot.id)
    return {"user": known, "status": "member" if inside else "left"}


async def get_chat_member(call: Call) -> object:
    chat_id = call.world.resolve_chat(call.bot, call.params.text("chat_id"))
    user_id = call.params.integer("user_id")
    if user_id <= 0:
        raise bad_request("invalid user_id specified")
    return _member(call.world, call.bot, chat_id, user_id)


async def get_chat_member_count(call: Call) -> object:
    chat_id = call.world.resolve_chat(call.bot, call.params.text("chat_id"))
    return len(call.world.groups[chat_id].members) if chat_id < 0 else 2


async def get_chat_administrators(call: Call) -> object:
    chat_id = call.world.resolve_chat(call.bot, call.params.text("chat_id"))
    if chat_id > 0:
        raise bad_request("there are no administrators in the private chat")
    return []


async def get_user_profile_photos(call: Call) -> object:
    if call.params.integer("user_id") not in call.world.people:
        raise bad_request("user not found")
    return {"total_count": 0, "photos": []}


async def forum_topic(call: Call) -> object:
    """Forum topics exist in supergroups that have them switched on; here none has."""
    call.world.writable_chat(call.bot, call.params.text("chat_id"))
    raise bad_request("the chat is not a forum")


METHODS: dict[str, Handler] = {
    "editMessageText": edit_message_text,
    "editMessageCaption": edit_message_caption,
    "editMessageReplyMarkup": edit_message_reply_markup,
    "deleteMessage": delete_message,
    "deleteMessages": delete_messages,
    "pinChatMessage": pin_or_unpin,
    "unpinChatMessage": pin_or_unpin,
    "unpinAllChatMessages": pin_or_unpin,
    "setMessageReaction": set_message_reaction,
    "answerCallbackQuery": answer_callback_query,
    "getFile": get_file,
    "getChat": get_chat,
    "getChatMember": get_chat_member,
    "getChatMemberCount": get_chat_member_count,
    "getChatAdministrators": get_chat_administrators,
    "getUserProfilePhotos": get_user_profile_photos,
    "createForumTopic": forum_topic,
    "editForumTopic": forum_topic,
}
