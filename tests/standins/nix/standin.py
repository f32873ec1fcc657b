"""A nix for tests: takes just the arguments that nix 2.8 takes, and answers as it does, from a description in JSON.

`MVM_STANDIN_NIX` names a directory with `world.json` (see `tests.standins.nix.world`). What was asked of it is appended
to `calls` there. Messages and log lines have the form that nix-bin 2.8.0 was seen to give.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

HOME = Path(os.environ["MVM_STANDIN_NIX"])
WORLD: dict[str, Any] = json.loads((HOME / "world.json").read_text())
FEATURES = ("--extra-experimental-features", "nix-command flakes")
FLAGS = {
    "flake metadata": {"--json": 0, "--no-write-lock-file": 0, "--override-input": 2},
    "flake prefetch": {"--json": 0},
    "eval": {"--json": 0, "--no-write-lock-file": 0, "--override-input": 2, "--apply": 1},
    "ping-store": {},
    "path-info": {"--derivation": 0, "--no-write-lock-file": 0, "--override-input": 2},
    "build": {"--json": 0, "--no-write-lock-file": 0, "--override-input": 2, "--out-link": 1},
}
"""What each command is allowed, with how many values."""


def event(**fields: Any) -> None:
    print("@nix " + json.dumps(fields), file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    text = f"\x1b[31;1merror:\x1b[0m {message}"
    event(action="msg", column=None, file=None, level=0, line=None, msg=text, raw_msg=message)
    event(action="msg", level=0, msg="(use '--show-trace' to show detailed location information)")
    sys.exit(1)


def plainly(message: str) -> NoReturn:
    """As nix fails before it knows how to log."""
    print(f"error: {message}\nTry 'nix --help' for more information.", file=sys.stderr)
    sys.exit(1)


def main(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        print(WORLD["version"])
        return
    with (HOME / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if tuple(arguments[:2]) != FEATURES:
        plainly("experimental Nix feature 'nix-command' is disabled")
    if arguments[2:4] != ["--log-format", "internal-json"]:
        plainly("this stand-in speaks internal-json only")
    command, rest = take_command(arguments[4:])
    options, values = take_options(command, rest)
    if message := WORLD["failing"].get(command):
        for line in WORLD["warnings"]:
            event(action="msg", level=1, msg=f"\x1b[35;1mwarning:\x1b[0m {line}")
        fail(message)
    commands = {
        "flake metadata": metadata,
        "flake prefetch": prefetch,
        "eval": evaluate,
        "ping-store": ping_store,
        "path-info": path_info,
        "build": build,
    }
    commands[command](options, values)


def take_command(arguments: list[str]) -> tuple[str, list[str]]:
    for command in FLAGS:
        words = command.split()
        if arguments[: len(words)] == words:
            return command, arguments[len(words) :]
    plainly(f"'{arguments[0]}' is not a recognised command")


def take_options(command: str, arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    options: dict[str, list[str]] = {}
    values: list[str] = []
    while arguments:
        word = arguments.pop(0)
        if not word.startswith("-"):
            values.append(word)
        elif word in FLAGS[command]:
            count = FLAGS[command][word]
            if len(arguments) < count:
                plainly(f"flag '{word}' requires {count} argument(s)")
            options[word] = [arguments.pop(0) for _ in range(count)]
        else:
            plainly(f"unrecognised flag '{word}'")
    return options, values


def flake_at(address: str) -> dict[str, Any]:
    """The flake of an address, which may be locked."""
    bare, _, lock = address.partition("?narHash=")
    if bare not in WORLD["flakes"]:
        fail(f"unable to download '{bare}': Couldn't resolve host name (6)")
    flake: dict[str, Any] = WORLD["flakes"][bare]
    if lock and lock != flake["narHash"]:
        fail(f"NAR hash mismatch in input '{address}'")
    return flake


def seen(address: str, options: dict[str, list[str]]) -> dict[str, Any]:
    """The flake with what it takes in replaced, as far as that changes what it is."""
    flake = flake_at(address)
    if "--override-input" in options:
        name, application = options["--override-input"]
        if name not in flake["inputs"]:
            fail(f"the flake has no input '{name}'")
        return {
            **flake,
            **flake["with"][application.partition("?")[0]],
            "application": flake_at(application)["narHash"],
        }
    return flake


def metadata(options: dict[str, list[str]], values: list[str]) -> None:
    if "--json" not in options:
        plainly("this stand-in prints JSON only")
    (address,) = values
    event(action="start", id=1, level=4, text=f"fetching '{address}'", type=0)
    flake = seen(address, options)
    event(action="stop", id=1)
    locked = {"narHash": flake["narHash"], "type": "path", **({"dir": flake["dir"]} if flake["dir"] else {})}
    locks = {"nodes": {"root": {}, "application": flake.get("application")}, "root": "root", "version": 7}
    print(
        json.dumps(
            {
                "locked": locked,
                "locks": locks,
                "originalUrl": address,
                **({"path": flake["path"]} if WORLD["copies"] else {}),
                "url": f"{address}?narHash={flake['narHash']}",
            }
        )
    )


def prefetch(_options: dict[str, list[str]], values: list[str]) -> None:
    flake = flake_at(*values)
    print(json.dumps({"hash": flake["narHash"], "storePath": flake["path"]}))


def attribute(options: dict[str, list[str]], installable: str) -> Any:
    address, _, path = installable.partition("#")
    found: Any = {"packages": seen(address, options)["packages"]}
    for part in path.split("."):
        if part not in found:
            tried = f"'packages.x86_64-linux.{path}', 'legacyPackages.x86_64-linux.{path}' or '{path}'"
            fail(f"flake '{address}' does not provide attribute {tried}")
        found = found[part]
    return found


def evaluate(options: dict[str, list[str]], values: list[str]) -> None:
    if options.get("--apply") != ["builtins.attrNames"]:
        plainly("this stand-in evaluates names of attributes only")
    print(json.dumps(sorted(attribute(options, *values))))


def ping_store(_options: dict[str, list[str]], _values: list[str]) -> None:
    event(action="msg", level=1, msg="warning: 'ping-store' is a deprecated alias for 'store ping'")
    event(action="msg", level=2, msg="Store URL: local")


def path_info(options: dict[str, list[str]], values: list[str]) -> None:
    package = attribute(options, *values)
    event(action="start", id=1, level=4, text="evaluating derivation", type=0)
    if message := package.get("evaluation"):
        fail(message)
    print(package["derivation"])


def build(options: dict[str, list[str]], values: list[str]) -> None:
    package = attribute(options, *values)
    derivation = package["derivation"]
    event(action="start", id=1, level=0, text="", type=102)
    event(action="start", id=2, level=0, text="", type=104)
    event(action="start", id=3, level=0, text="", type=103)
    event(action="result", id=2, type=105, fields=[0, 2, 0, 0])
    event(action="result", id=1, type=106, fields=[100, 64 * 2**20])
    event(
        action="start", id=4, level=3, text="copying path '/nix/store/x'", type=100, fields=["/nix/store/x", "a", "b"]
    )
    event(action="result", id=4, type=105, fields=[16 * 2**20, 32 * 2**20, 0, 0])
    wait(package, "copying")
    event(action="stop", id=4)
    event(action="start", id=5, level=3, text=f"building '{derivation}'", type=105, fields=[derivation, "", 1, 1])
    event(action="result", id=2, type=105, fields=[1, 2, 1, 0])
    for line in package["log"]:
        event(action="result", id=5, type=101, fields=[line])
    event(action="something", new="in a later version")
    wait(package, "building")
    if status := package["status"]:
        fail(f"builder for '\x1b[35;1m{derivation}\x1b[0m' failed with exit code {status}")
    (link,) = options["--out-link"]
    os.symlink(package["output"], link)
    print(json.dumps([{"drvPath": package["built"], "outputs": {"out": package["output"]}}]))


def wait(package: dict[str, Any], where: str) -> None:
    """Hang until somebody ends this, as nix does: it says so."""
    if package["hangs"] != where:
        return

    def interrupted(_number: int, _frame: object) -> None:
        fail("interrupted by the user")

    signal.signal(signal.SIGTERM, interrupted)
    (HOME / "pid").write_text(str(os.getpid()))
    while True:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
