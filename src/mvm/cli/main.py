"""The command `mvm`: finds the command that was typed, and shows errors once.

Nothing is imported before it is needed: `mvm --help` is answered from this module alone, and each noun is a module that
is loaded when one of its commands is used (`mvm.cli.root`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from mvm.model.errors import ExitStatus, MvmError

COMMANDS = {
    "new": "Create a deployment, or change it to what its file says.",
    "deploy": "Make a deployment what its deployment.toml says, once or with --watch.",
    "manifest": "The files that you write: check them, and their schemas for editors.",
    "connect": "Show how to reach a deployment.",
    "demo": "Show a message waking a sleeping OpenClaw, with stand-ins for Telegram and the model.",
    "user": "The people a deployment serves: add, list, pair, link, remove.",
    "tenant": "Tenants and their secrets.",
    "pool": "Pools of instances.",
    "instance": "Single instances: start, sleep, wake, logs and more.",
    "events": "What happened, and what happens.",
    "explain": "What a tenant, pool or instance is doing, and why.",
    "console": "The address of the web console of this host.",
    "usage": "What every tenant and user used: running time, memory, wakes, messages.",
    "net": "The networks of tenants: prove who reaches whom.",
    "node": "This host: what it is, what it uses, what nobody needs.",
    "agent": "The daemon that does the work.",
    "setup": "What a host needs beside mvm: install Firecracker.",
    "doctor": "Check this machine, and say what to do about what is missing.",
}
"""Every command and its line in the help; `mvm.cli.<name>` holds it as `app`."""

OPTIONS = {
    "--state-dir DIR": "Where state is kept (MVM_STATE_DIR).",
    "--run-dir DIR": "Where the agent's socket is (MVM_RUN_DIR).",
    "--version": "Show the version and exit.",
    "--help": "Show this message and exit.",
}
"""The options of `mvm` itself; `mvm.cli.root` has them for the parser."""

PURPOSE = "OpenClaw for many people, each asleep until somebody writes to it."

INTERRUPTED = 130
"""Exit status of a shell command that ended by Ctrl-C."""


HINTS = {
    ExitStatus.FAILED: "`mvm events` shows what happened, `mvm doctor` checks this machine",
    ExitStatus.USAGE: "correct it and type it again",
    ExitStatus.NOT_FOUND: "`mvm tenant list` and `mvm instance list` show what there is",
    ExitStatus.REFUSED: "`mvm explain TENANT` shows its quotas and what it does",
}
"""What to do about an error that does not say so itself."""


def help_text() -> str:
    """What `mvm --help` shows."""
    parts = ["Usage: mvm [OPTIONS] COMMAND [ARGS]...", f"  {PURPOSE}"]
    for title, entries in (("Options", OPTIONS), ("Commands", COMMANDS)):
        width = max(map(len, entries))
        parts.append("\n".join([f"{title}:", *(f"  {name.ljust(width)}  {line}" for name, line in entries.items())]))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status (CONTRACT 17). Nothing is raised but what is a defect."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    try:
        if given == ["--help"]:
            print(help_text())
            status: int = ExitStatus.DONE
        else:
            from mvm.cli.root import run

            status = run(given)
        sys.stdout.flush()
    except MvmError as error:
        return fail(error.message, error.hint or HINTS.get(error.exit_status), error.exit_status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has had enough.
        _write_no_more()
        return ExitStatus.FAILED
    except OSError as error:
        # Of the place that the output goes to (a full disk), or a file that went away while it was read.
        _write_no_more()
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}", HINTS[ExitStatus.FAILED], ExitStatus.FAILED)
    return status


def _open_closed_streams() -> None:
    """Standard streams that were closed before the start lead nowhere; nothing else may get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the end


def _write_no_more() -> None:
    """What is still to be written is lost, also at exit, where it could only fail once more."""
    with contextlib.suppress(AttributeError, ValueError):  # closed already, or no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, hint: str | None, status: int) -> int:
    """Two lines: what was wrong and where, and what to do. A guest's words may be in them."""
    from mvm.telemetry.printable import printable

    print(f"error: {printable(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {printable(hint)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
