"""The root of the command line for its parser: options of `mvm` itself, and the commands by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from typer.main import get_command

from mvm.cli.main import COMMANDS, INTERRUPTED, OPTIONS, PURPOSE, fail, help_text
from mvm.model.errors import ExitStatus

if TYPE_CHECKING:
    from typer._click import Command, Context


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

    def get_help(self, ctx: Context) -> str:
        return help_text()

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


@app.callback(help=PURPOSE)
def root(
    state_dir: Annotated[str | None, typer.Option(metavar="DIR", help=OPTIONS["--state-dir DIR"])] = None,
    run_dir: Annotated[str | None, typer.Option(metavar="DIR", help=OPTIONS["--run-dir DIR"])] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help=OPTIONS["--version"])
    ] = False,
) -> None:
    from mvm.cli import session

    session.begin(state_dir=state_dir, run_dir=run_dir)


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line; raises `MvmError` for what went wrong, and answers itself what was not understood."""
    try:
        answer = app(arguments, prog_name="mvm", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error)
    except typer.Abort:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return answer if isinstance(answer, int) else ExitStatus.DONE


def _usage(error: typer.TyperException) -> int:
    """A command line that was not understood; a command without arguments shows its help."""
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if message.startswith("Usage:"):
        print(message, file=sys.stderr)
        return ExitStatus.USAGE
    path = context.command_path if context is not None else "mvm"
    return fail(message.rstrip("."), f"`{path} --help` shows how it is used", ExitStatus.USAGE)
