"""Write the guest's program: `make_zipapp.py TARGET`, with mvm on the path of Python's modules."""

import sys
from pathlib import Path

from mvm.image.guest_zipapp import build_zipapp

build_zipapp(Path(sys.argv[1]))
