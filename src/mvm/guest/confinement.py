"""What a process may do: its user, its groups, its place in the queue when memory runs out (a machine of its own only).

Whoever is not root cannot become it again: no program gives it rights, and there is none left that it could be given.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

from mvm.guest.users import ROOT, User

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_MOST_CAPABILITIES = 64
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """Rights of one process and of everything that it starts."""

    user: User = ROOT
    groups: tuple[User, ...] = ()
    """Groups besides the user's own."""
    oom_score: int = 0
    """From -1000 (never ended) to 1000: who is ended first when memory runs out."""

    def take(self) -> None:
        """Confine the calling process, for good. Raises `OSError`; it must not go on then."""
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(self.oom_score))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if self.user is ROOT:
            return
        os.umask(0o077)
        _drop_capabilities()
        os.setgroups([self.user.number, *(group.number for group in self.groups)])
        os.setresgid(self.user.number, self.user.number, self.user.number)
        os.setresuid(self.user.number, self.user.number, self.user.number)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)


UNCONFINED = Confinement()
COMMAND_OF_OPERATOR = Confinement(oom_score=300)
"""`mvm instance exec`: whoever operates the machine is root in it."""


def before_exec(*steps: Callable[[], None]) -> Callable[[], None]:
    """All of these in one, for `preexec_fn`."""

    def run() -> None:
        for step in steps:
            step()

    return run


def _drop_capabilities() -> None:
    """Take every capability out of the set that a program could ever be given."""
    for number in range(_MOST_CAPABILITIES):
        try:
            _prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # this kernel has no more
                return
            raise


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
