"""Flood control: how much a bot may send before it is told to wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mvm.demo.telegram.errors import too_many_requests


@dataclass(frozen=True)
class FloodLimits:
    """Messages that may be sent at once, and how many per second after that.

    Telegram publishes about one per second in a chat (short bursts pass), 20 per minute in a group and 30 per second
    over all (https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this).
    """

    private_burst: float = 30
    private_per_second: float = 1
    group_burst: float = 20
    group_per_second: float = 20 / 60
    overall_burst: float = 30
    overall_per_second: float = 30


TELEGRAM_LIMITS = FloodLimits()


@dataclass
class _Bucket:
    burst: float
    per_second: float
    level: float = 0.0
    at: float = 0.0

    def wait(self, now: float) -> float:
        """Seconds until one more fits; 0 when it fits now."""
        self.level = max(0.0, self.level - (now - self.at) * self.per_second)
        self.at = now
        return max(0.0, (self.level + 1 - self.burst) / self.per_second)


@dataclass
class FloodControl:
    """Counts what bots send. `clock` is monotonic seconds."""

    limits: FloodLimits = field(default_factory=FloodLimits)
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[tuple[int, int | None], _Bucket] = field(default_factory=dict)

    def count(self, bot_id: int, chat_id: int) -> None:
        """Count one message, or raise 429 with the seconds to wait."""
        limits = self.limits
        rates = (
            (limits.private_burst, limits.private_per_second)
            if chat_id > 0
            else (limits.group_burst, limits.group_per_second)
        )
        chat = self._buckets.setdefault((bot_id, chat_id), _Bucket(*rates))
        overall = self._buckets.setdefault((bot_id, None), _Bucket(limits.overall_burst, limits.overall_per_second))
        now = self.clock()
        wait = max(chat.wait(now), overall.wait(now))
        if wait > 0:
            raise too_many_requests(math.ceil(wait))
        chat.level += 1
        overall.level += 1
