"""The one source of time, randomness and ids on a host, so that a simulation can own them.

Wall-clock time (`now`) is for records that people and guests read; it may jump. Durations and deadlines use
`monotonic`, which never goes backwards. The two are never mixed.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mvm.model.ids import InstanceId


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _random_instance_id() -> InstanceId:
    return InstanceId(f"i-{secrets.token_hex(4)}")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Time and chance as arguments. The defaults are the real ones."""

    now: Callable[[], datetime] = _utc_now
    """UTC wall-clock time."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds; only differences mean something."""
    new_instance_id: Callable[[], InstanceId] = _random_instance_id
    jitter: random.Random = field(default_factory=random.SystemRandom)
    entropy: Callable[[int], bytes] = secrets.token_bytes
