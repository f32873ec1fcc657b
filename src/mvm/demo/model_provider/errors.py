"""Errors of the Messages API: a type, a status and a message in its envelope."""

from __future__ import annotations

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES = {
    429: "This request would exceed your organization's rate limit. Please try again later.",
    500: "Internal server error",
    529: "Overloaded",
}


class ProviderError(Exception):
    """An answer with HTTP status `status`; without a message the one that the API uses."""

    def __init__(self, status: int, message: str | None = None, *, retry_after: int | None = None) -> None:
        self.status = status
        self.message = message or _MESSAGES.get(status, "Error")
        self.retry_after = retry_after
        super().__init__(self.message)

    @property
    def kind(self) -> str:
        return _TYPES.get(self.status, "api_error")

    def body(self, request_id: str) -> dict[str, object]:
        return {
            "type": "error",
            "error": {"type": self.kind, "message": self.message},
            "request_id": request_id,
        }


def invalid(where: str, what: str) -> ProviderError:
    """400 with the path of the field, as the API writes it: `messages.0.role: ...`."""
    return ProviderError(400, f"{where}: {what}" if where else what)
