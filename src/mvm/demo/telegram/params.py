"""Parameters of a Bot API call, from the query string, a form, multipart or a JSON object, as the API takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.web_request import FileField

from mvm.demo.telegram.errors import ApiError, bad_request


@dataclass(frozen=True)
class Upload:
    """A file that came with the call in multipart form."""

    name: str
    content_type: str
    data: bytes


class Params:
    """The values of one call; getters check types and name the parameter in their errors."""

    def __init__(self, values: Mapping[str, object], uploads: Mapping[str, Upload] | None = None) -> None:
        self._values = dict(values)
        self.uploads = dict(uploads or {})

    @classmethod
    async def read(cls, request: web.Request) -> Params:
        """Collect the parameters of `request`; the body wins over the query string."""
        values: dict[str, object] = dict(request.query)
        uploads: dict[str, Upload] = {}
        if request.method != "POST" or not request.can_read_body:
            return cls(values)
        if request.content_type == "application/json":
            values.update(_json_object(await request.read()))
        elif request.content_type in ("application/x-www-form-urlencoded", "multipart/form-data"):
            try:
                form = await request.post()
            except web.HTTPRequestEntityTooLarge as problem:
                raise ApiError(413, "Request Entity Too Large") from problem
            except ValueError as problem:
                raise bad_request(f"can't parse the form: {problem}") from problem
            for name, value in form.items():
                if isinstance(value, FileField):
                    uploads[name] = Upload(value.filename, value.content_type, value.file.read())
                else:
                    values[name] = value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
        return cls(values, uploads)

    def has(self, name: str) -> bool:
        return self._values.get(name) not in (None, "")

    def text(self, name: str) -> str | None:
        """A string parameter; numbers and booleans of a JSON body are taken as their text."""
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return str(value)
        return json.dumps(value, ensure_ascii=False)

    def integer(self, name: str, default: int = 0) -> int:
        text = self.text(name)
        if text is None or text.strip() == "":
            return default
        try:
            return int(text.strip())
        except ValueError:
            raise bad_request(f'invalid parameter "{name}": an integer is expected') from None

    def boolean(self, name: str) -> bool:
        return (self.text(name) or "").strip().lower() in ("true", "yes", "1")

    def structure(self, name: str) -> object | None:
        """A parameter that is JSON: an object or list in a JSON body, its text in a form."""
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            return value
        try:
            parsed: object = json.loads(value)
        except ValueError:
            raise bad_request(f"can't parse {name.replace('_', ' ')} JSON object") from None
        return parsed

    def mapping(self, name: str) -> dict[str, object] | None:
        value = self.structure(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise bad_request(f"object expected as {name.replace('_', ' ')}")
        return value

    def sequence(self, name: str) -> list[object] | None:
        value = self.structure(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise bad_request(f"array expected as {name.replace('_', ' ')}")
        return value

    def with_values(self, values: Mapping[str, object]) -> Params:
        """The same call with other values (and the same uploads)."""
        return Params(values, self.uploads)


def _json_object(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except ValueError:
        raise bad_request("can't parse JSON object") from None
    if not isinstance(value, dict):
        raise bad_request("request body must be a JSON object")
    return value
