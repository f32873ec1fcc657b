"""`python -m mvm.demo --state-file FILE`: both stand-ins in one process, until it is told to end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mvm.demo.standins import main

parser = argparse.ArgumentParser(
    prog="python -m mvm.demo", description="Local stand-ins for the Telegram Bot API and model providers."
)
parser.add_argument("--state-file", type=Path, required=True, help="where ports, token and key are written (0600)")
parser.add_argument("--with-parent", action="store_true", help="end when the process that started this one ends")
arguments = parser.parse_args()
sys.exit(main(arguments.state_file, with_parent=arguments.with_parent))
