"""Archives for the kernel's initial file system."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from mvm.image.cpio import Archive


def archive() -> bytes:
    content = Archive()
    content.directory("bin")
    content.file("bin/program", b"#!/bin/sh\n", 0o755)
    content.file("odd", b"12345")
    content.link("bin/sh", "program")
    content.character_device("console", 5, 1)
    return bytes(content)


def test_every_entry_begins_at_a_multiple_of_four() -> None:
    content = archive()
    starts = [at for at in range(len(content)) if content.startswith(b"070701", at)]
    assert len(starts) == 6
    assert all(start % 4 == 0 for start in starts)
    assert len(content) % 4 == 0


def test_the_same_entries_give_the_same_bytes() -> None:
    assert archive() == archive()


@pytest.mark.skipif(shutil.which("cpio") is None and shutil.which("busybox") is None, reason="needs cpio or busybox")
def test_another_program_reads_what_was_written() -> None:
    reader = ["cpio"] if shutil.which("cpio") else ["busybox", "cpio"]
    listed = subprocess.run(
        [*reader, "-t", "--quiet"][: 2 + len(reader)], input=archive(), capture_output=True, check=True
    )
    assert listed.stdout.decode().split() == ["bin", "bin/program", "odd", "bin/sh", "console"]
