"""`Exec`: a command of the operator's, where the pool allows it.

In a machine of its own it runs as root: whoever operates a machine looks after it, and may become anybody in it.
"""

from __future__ import annotations

from mvm.guest import commands
from mvm.guest.confinement import COMMAND_OF_OPERATOR
from mvm.guest.paths import GuestPaths, real
from mvm.wire.messages import MAX_OUTPUT, Exec, ExecResult
from mvm.wire.rpc import Refusal

TIMEOUT_STATUS = 124
"""Exit status of a command that was ended because its time was over, as `timeout(1)` has it."""


async def run(paths: GuestPaths, request: Exec, *, allowed: bool) -> ExecResult:
    """Run it. Raises `Refusal` when it may not be run or cannot be started."""
    if not allowed:
        raise Refusal("this pool does not allow commands to be run in its instances")
    try:
        outcome = await commands.run(
            request.argv,
            environment=commands.own_environment(),
            directory=real(paths.data),
            stdin=(request.stdin or "").encode(),
            seconds=request.timeout_secs,
            keep_bytes=MAX_OUTPUT,
            confinement=COMMAND_OF_OPERATOR if paths.owns_machine else None,
        )
    except commands.CommandError as error:
        raise Refusal(str(error)) from error
    return ExecResult(
        status=TIMEOUT_STATUS if outcome.timed_out else outcome.status,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        truncated=outcome.truncated,
    )
