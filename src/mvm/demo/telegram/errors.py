"""Answers other than `ok` of the Bot API, in its own words."""

from __future__ import annotations


class ApiError(Exception):
    """`{"ok":false,"error_code":...,"description":...}` with HTTP status `code`."""

    def __init__(self, code: int, description: str, *, retry_after: int | None = None) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.retry_after = retry_after

    def body(self) -> dict[str, object]:
        answer: dict[str, object] = {"ok": False, "error_code": self.code, "description": self.description}
        if self.retry_after is not None:
            answer["parameters"] = {"retry_after": self.retry_after}
        return answer


def bad_request(what: str) -> ApiError:
    return ApiError(400, f"Bad Request: {what}")


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized")


def forbidden(what: str) -> ApiError:
    return ApiError(403, f"Forbidden: {what}")


def not_found(what: str | None = None) -> ApiError:
    return ApiError(404, f"Not Found: {what}" if what else "Not Found")


def conflict(what: str) -> ApiError:
    return ApiError(409, f"Conflict: {what}")


def too_many_requests(seconds: int) -> ApiError:
    return ApiError(429, f"Too Many Requests: retry after {seconds}", retry_after=seconds)
