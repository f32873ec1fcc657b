"""Logs: one JSON object per line for the agent, readable lines for people.

Code logs through `structlog.get_logger(__name__)` with an event and keywords; what a task is about (tenant, instance)
is bound once with `bound(...)` and is then in every line of that task. The standard library's `logging` (asyncio,
aiohttp, `mvm.wire`) ends in the same place. Secrets are taken out of every line, tracebacks
included, and so is what could act on a terminal.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from mvm.telemetry.printable import printable
from mvm.telemetry.redaction import redact

MAX_FILE_BYTES = 10 * 1024 * 1024
KEPT_FILES = 2

_MAX_DEPTH = 8


class LogStyle(StrEnum):
    """How lines look."""

    JSON = "json"
    CONSOLE = "console"


def configure(style: LogStyle, *, level: int, file: Path | None = None) -> None:
    """Send all logs of this process to stderr, or to `file` (mode 0600, rotated by size). A later call replaces it.

    `level` is one of `logging`'s. Raises `OSError` when the file cannot be opened.
    """
    handler = logging.StreamHandler(sys.stderr) if file is None else _PrivateRotatingFile(file)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact_values,
                _Redacted(_renderer(style, colours=file is None and sys.stderr.isatty())),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(getattr(old, "formatter", None), structlog.stdlib.ProcessorFormatter):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # what it says at debug is about itself
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # loggers are made at import, before the style is known
    )


def bound(**values: object) -> AbstractContextManager[None]:
    """Put these values into every line logged by this task inside the block, such as `bound(instance=str(ref))`."""
    return structlog.contextvars.bound_contextvars(**values)


class _PrivateRotatingFile(RotatingFileHandler):
    """A bounded log file that only its owner reads."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8", errors="replace")

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)


def _renderer(style: LogStyle, *, colours: bool) -> Processor:
    if style is LogStyle.JSON:
        return structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    # Plain tracebacks: a pretty one shows local variables, which may be secrets.
    return structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)


class _Redacted:
    """The last step: whatever became text on the way is searched too."""

    def __init__(self, renderer: Processor) -> None:
        self._renderer = renderer

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        return redact(str(self._renderer(logger, method, event)))


def _redact_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: _redacted(value, _MAX_DEPTH) for key, value in event.items()}


def _redacted(value: object, depth: int) -> object:
    """A copy without secrets, taken before rendering: quoting could hide a value from a search of the text."""
    if isinstance(value, str):
        return printable(redact(value))
    if depth and isinstance(value, Mapping):
        return {str(key): _redacted(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(item, depth - 1) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return printable(redact(str(value)))
