#!/usr/bin/env python3
"""How long `mvm --help` takes, beside a Python that does nothing.

    python bench/cli.py [--rounds 30] [--json]

Wall-clock milliseconds of whole processes, the best of all rounds, which other work on the machine disturbs least; and
for the whole command line, how long each command's own help takes (it loads the parser and that command's module).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from mvm.cli.main import COMMANDS

NOTHING = (sys.executable, "-c", "pass")
MVM = (sys.executable, "-m", "mvm.cli.main")


def best(*command: str, rounds: int) -> float:
    """Milliseconds of the fastest of so many runs."""
    fastest = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        fastest = min(fastest, time.perf_counter() - began)
    return fastest * 1000


def measure(rounds: int) -> dict[str, float]:
    """Figures in the units that their names say."""
    nothing = best(*NOTHING, rounds=rounds)
    own_help = best(*MVM, "--help", rounds=rounds)
    slowest = max(best(*MVM, name, "--help", rounds=max(rounds // 10, 1)) for name in COMMANDS)
    return {
        "python_that_does_nothing_ms": nothing,
        "mvm_help_ms": own_help,
        "ratio": own_help / nothing,
        "slowest_help_of_a_command_ms": slowest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:32}{value:>10,.2f}")


if __name__ == "__main__":
    main()
