"""Faults that a test or an operator puts between a stand-in and its callers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, get_args

Action = Literal["drop", "drop_after", "delay", "error", "hang"]


@dataclass
class Fault:
    """What to do to the next `times` calls of `operation` (`*` any; None times: until cleared).

    drop: hang up without doing anything; drop_after: do it, then hang up instead of answering; delay: wait `seconds`
    first; error: answer `code` with `description`; hang: never answer.
    """

    action: Action
    operation: str = "*"
    times: int | None = 1
    seconds: float = 0.0
    code: int = 500
    description: str = "Internal Server Error"
    retry_after: int | None = None

    @classmethod
    def parse(cls, given: dict[str, object]) -> Fault:
        """From the admin API's JSON; ValueError names what is wrong."""
        known = cls.__dataclass_fields__
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"unknown key of a fault: {', '.join(unknown)}; there are {', '.join(known)}")
        if given.get("action") not in get_args(Action):
            raise ValueError(f"the action of a fault is one of {', '.join(get_args(Action))}")
        return cls(**given)  # type: ignore[arg-type]


class FaultBoard:
    """The faults in force, oldest first; each call meets the first that fits."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear(self) -> None:
        self._faults.clear()

    def take(self, operation: str) -> Fault | None:
        """The fault that this call meets, counted as used once."""
        for fault in self._faults:
            if fault.operation.lower() not in ("*", operation.lower()):
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
            return fault
        return None


async def endure(fault: Fault) -> None:
    """Wait as a delay or a hang says; returns at once for the other actions."""
    if fault.action == "delay":
        await asyncio.sleep(fault.seconds)
    elif fault.action == "hang":
        await asyncio.Event().wait()
