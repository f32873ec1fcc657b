"""The one error tree of mvm.

An error is raised where the knowledge is and shown once, at the edge: the CLI prints `message` and `hint`, the
agent API sends them as `{"Error": {"code", "message", "hint"}}`. A user error never shows a traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of the command line (CONTRACT 17)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4


class MvmError(Exception):
    """Something went wrong that a person can be told about.

    `message` is one line that says what was wrong and where; `hint` one line that says what to do.
    """

    code = 500
    exit_status = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidInput(MvmError):
    """A file, flag, frame or field is not of the form it must have."""

    code = 400
    exit_status = ExitStatus.USAGE


class NotFound(MvmError):
    """The named object does not exist (or the caller may not know whether it does)."""

    code = 404
    exit_status = ExitStatus.NOT_FOUND


class Refused(MvmError):
    """A policy or permission says no."""

    code = 403
    exit_status = ExitStatus.REFUSED


class QuotaExceeded(Refused):
    """An action would exceed a tenant's quota; names the quota, the limit, the use and the request."""

    code = 429


class Conflict(MvmError):
    """The object is not in a state that allows this, or it changed meanwhile."""

    code = 409


class Unavailable(MvmError):
    """Something this needs does not answer or is not there (yet); trying again later may help."""

    code = 503


class TimedOut(Unavailable):
    """A wait was given up; the message says what was waited for and how long."""

    code = 504


_BY_CODE: dict[int, type[MvmError]] = {
    cls.code: cls for cls in (MvmError, InvalidInput, NotFound, Refused, QuotaExceeded, Conflict, Unavailable, TimedOut)
}


def error_for_code(code: int, message: str, hint: str | None = None) -> MvmError:
    """Rebuild the error that a peer sent as a code; an unknown code becomes a plain `MvmError`."""
    return _BY_CODE.get(code, MvmError)(message, hint=hint)


class SnapshotRejected(MvmError):
    """A snapshot does not fit this host or its drives, or is damaged; the instance is booted cold instead."""
