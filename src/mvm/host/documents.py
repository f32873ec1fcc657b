"""Documents of the state database that are not what this version wrote: named, and never the end of the agent.

What a tenant cannot be without is refused by name (`parsed`); what is only remembered for convenience, or counted,
counts as not there (`parsed_or`), and the log says so.
"""

from __future__ import annotations

from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from mvm.model.errors import MvmError
from mvm.model.validation import problems_of
from mvm.store.base import Document

log = structlog.get_logger(__name__)

E = TypeVar("E", bound=BaseModel)
D = TypeVar("D")


def damaged(document: Document, kind: type[BaseModel], error: ValidationError) -> MvmError:
    """The error for a document that cannot be read; its content is not in it."""
    return MvmError(
        f"document {document.key!r} in the state database is damaged: {problems_of(error, kind)[0]}",
        hint="restore the state directory from a backup, or report this with the document's text",
    )


def parsed(kind: type[E], document: Document) -> E:
    """What is in a document; raises `MvmError` naming it."""
    try:
        return kind.model_validate(document.value, strict=False)
    except ValidationError as error:
        raise damaged(document, kind, error) from error


def parsed_or(kind: type[E], document: Document | None, otherwise: D) -> E | D:
    """What is in a document; `otherwise` when there is none or it cannot be read."""
    if document is None:
        return otherwise
    try:
        return parsed(kind, document)
    except MvmError as error:
        log.error("a document is passed over", reason=error.message)
        return otherwise
