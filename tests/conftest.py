"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

pytest_plugins = ["tests.vm.images"]

# No deadline: a busy machine is no defect. In continuous integration the same examples at every run.
settings.register_profile("mvm", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("mvm")
