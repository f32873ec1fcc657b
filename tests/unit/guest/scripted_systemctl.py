#!/usr/bin/env python3
"""Stands in for `systemctl` and the systemd behind it: starts and stops what `units.json` describes, restarts nothing.

State is files beside `units.json`: `<unit>.pid`, and `calls` with one line per call.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(os.environ["SCRIPTED_SYSTEMD"])
UNITS = json.loads((HERE / "units.json").read_text())


def variables(unit):
    found = dict(unit["environment"])
    for file in unit["environment_files"]:
        for line in Path(file).read_text().splitlines():
            name, _, value = line.partition("=")
            found[name] = value[1:-1]
    return found


def pid_of(name):
    try:
        pid = int((HERE / f"{name}.pid").read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else pid


def start(name):
    unit = UNITS[name]
    for needed in unit["requires"]:
        if not (HERE / f"{needed}.done").exists():
            start(needed)
    if pid_of(name) is not None:
        return
    with Path(unit["log"]).open("ab") as log:
        process = subprocess.Popen(
            unit["argv"],
            env=variables(unit),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if unit["step"]:
        if process.wait() != 0:
            sys.exit(f"Job for {name} failed.")
        (HERE / f"{name}.done").touch()
    else:
        (HERE / f"{name}.pid").write_text(str(process.pid))


def end(name, number):
    pid = pid_of(name)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def stop(name):
    end(name, signal.SIGTERM)
    while pid_of(name) is not None:
        time.sleep(0.01)


def show(names):
    for name in names:
        pid = pid_of(name) or 0
        known = name in UNITS
        print(f"Id={name}\nLoadState={'loaded' if known else 'not-found'}")
        print(f"ActiveState={'active' if pid else 'inactive'}\nSubState={'running' if pid else 'dead'}")
        print(f"MainPID={pid}\nNRestarts=0\nExecMainCode=0\nExecMainStatus=0\n")


def main():
    with (HERE / "calls").open("a") as file:
        file.write(" ".join(sys.argv[1:]) + "\n")
    match [argument for argument in sys.argv[1:] if not argument.startswith("--")]:
        case ["start", name]:
            if name not in UNITS:
                sys.exit(f"Failed to start {name}: Unit {name} not found.")
            start(name)
        case ["stop", name]:
            stop(name)
        case ["kill", name]:
            end(name, signal.SIGKILL)
        case ["show", *names]:
            show(names)
        case ["reset-failed", _] | ["reboot"]:
            pass
        case other:
            sys.exit(f"Unknown command verb {other}.")


main()
