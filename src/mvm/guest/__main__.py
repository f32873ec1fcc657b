"""Entry of the guest's zipapp: `python guest.pyz supervise|clear|agent|router|openclaw-ctl ...`.

Each sub-command imports what it needs and nothing else: a wake waits for this process to come up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

USAGE = """usage: guest.pyz supervise|clear
       guest.pyz agent
       guest.pyz router
       guest.pyz openclaw-ctl checkpoint|restore <integration>"""


def main(arguments: Sequence[str]) -> int:
    """Run a sub-command; returns the exit status (2 for wrong usage)."""
    match list(arguments):
        case ["supervise"]:
            from mvm.guest import supervisor

            return supervisor.main(os.environ)
        case ["clear"]:
            from mvm.guest import supervisor

            return supervisor.clear(os.environ)
        case ["router"]:
            from mvm.guest import router_service

            return router_service.main(os.environ)
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
