"""The command `mvm`: finds the command that was typed, and shows errors once.

Nothing is imported before it is needed, so that `mvm --help` answers at once; each noun is a module that is loaded when
one of its commands is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from typer.main import get_command

from mvm.model.errors import ExitStatus, MvmError

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

COMMANDS = {
    "new": "Create a deployment, or change it to what its file says.",
    "deploy": "Make a deployment what its deployment.toml says, once or with --watch.",
    "connect": "Show how to reach a deployment.",
    "demo": "Show a message waking a sleeping OpenClaw, with stand-ins for Telegram and the model.",
    "user": "The people a deployment serves: add, list, remove, pair.",
    "tenant": "Tenants and their secrets.",
    "pool": "Pools of instances.",
    "instance": "Single instances: start, sleep, wake, logs and more.",
    "events": "What happened, and what happens.",
    "explain": "What a tenant, pool or instance is doing, and why.",
    "console": "The address of the web console of this host.",
    "usage": "What every tenant and user used: running time, memory, wakes, messages.",
    "net": "The networks of tenants: prove who reaches whom.",
    "node": "This host: what it is and what it uses.",
    "agent": "The daemon that does the work.",
    "setup": "What a host needs beside mvm: install Firecracker.",
    "doctor": "Check this machine, and say what to do about what is missing.",
}
"""Every command and its line in the help; `mvm.cli.<name>` holds it as `app`."""

INTERRUPTED = 130
"""Exit status of a shell command that ended by Ctrl-C."""


class _Commands(MutableMapping[str, Any]):
    """The commands by name; each is imported when it is looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = get_command(import_module(f"mvm.cli.{name}").app)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class LazyGroup(typer.core.TyperGroup):
    """The root command. Its help names the commands without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()

    def list_commands(self, ctx: Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        command: Command | None = self.commands.get(cmd_name)
        return command


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"mvm {version('mvm-fleet')}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True
)


@app.callback(help="OpenClaw for many people, each asleep until somebody writes to it.")
def root(
    state_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Where state is kept (MVM_STATE_DIR).")] = None,
    run_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the agent's socket is (MVM_RUN_DIR).")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    from mvm.cli import session

    session.begin(state_dir=state_dir, run_dir=run_dir)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status (CONTRACT 17). Nothing is raised but what is a defect."""
    try:
        answer = app(arguments, prog_name="mvm", standalone_mode=False)
        sys.stdout.flush()
    except MvmError as error:
        return _fail(error.message, error.hint, error.exit_status)
    except typer.TyperException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has had enough; nothing more can be written, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.FAILED
    return answer if isinstance(answer, int) else ExitStatus.DONE


def _usage(error: typer.TyperException) -> int:
    """A command line that was not understood; a command without arguments shows its help."""
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if message.startswith("Usage:"):
        print(message, file=sys.stderr)
        return ExitStatus.USAGE
    path = context.command_path if context is not None else "mvm"
    return _fail(message.rstrip("."), f"`{path} --help` shows how it is used", ExitStatus.USAGE)


def _fail(message: str, hint: str | None, status: int) -> int:
    """Two lines: what was wrong and where, and what to do. A guest's words may be in them."""
    from mvm.telemetry.printable import printable

    print(f"error: {printable(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {printable(hint)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
