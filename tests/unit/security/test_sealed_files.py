"""Sealed files: only the passphrase opens them, and nothing of them can be changed unnoticed."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvm.model.errors import InvalidInput, Refused
from mvm.security import sealed_files
from mvm.security.sealed_files import CHUNK, SealedReader, SealedWriter, read_header

PASSPHRASE = "correct horse battery"


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed_files, "SCRYPT", {"log2_n": 4, "r": 1, "p": 1})
        yield


def sealed(content: bytes) -> bytes:
    file = io.BytesIO()
    writer = SealedWriter(file, PASSPHRASE)
    writer.write(content)
    writer.close()
    return file.getvalue()


def opened(data: bytes, passphrase: str = PASSPHRASE) -> bytes:
    return io.BufferedReader(SealedReader(io.BytesIO(data), passphrase)).read()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_what_was_written_is_read_again(size: int) -> None:
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    data = sealed(content)
    assert opened(data) == content
    assert b"\x00\x01\x02\x03\x04\x05" not in data[200:]


def test_a_wrong_passphrase_is_told_apart_from_damage() -> None:
    with pytest.raises(Refused, match="passphrase"):
        opened(sealed(b"text"), "another passphrase")


@pytest.mark.parametrize("cut", [1, 16, 17, CHUNK + 16, CHUNK + 100, 2 * CHUNK + 32])
def test_a_file_that_was_cut_off_is_not_taken_for_a_whole_one(cut: int) -> None:
    with pytest.raises(InvalidInput, match="cut off"):
        opened(sealed(b"x" * (2 * CHUNK + 5))[:-cut])


def test_a_file_that_was_never_finished_cannot_be_opened() -> None:
    file = io.BytesIO()
    writer = SealedWriter(file, PASSPHRASE)
    writer.write(b"x" * (2 * CHUNK))
    writer.abandon()
    with pytest.raises(InvalidInput, match="cut off"):
        opened(file.getvalue())


def test_chunks_cannot_change_places() -> None:
    data = sealed(b"a" * CHUNK + b"b" * CHUNK + b"c")
    head, one = len(read_header(io.BytesIO(data))[0]), CHUNK + 16
    swapped = data[:head] + data[head + one : head + 2 * one] + data[head : head + one] + data[head + 2 * one :]
    with pytest.raises(InvalidInput, match="damaged"):
        opened(swapped)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(1, 255))
def test_no_byte_can_be_changed(position: int, change: int) -> None:
    data = bytearray(sealed(b"y" * 300))
    data[position % len(data)] ^= change
    with pytest.raises((InvalidInput, Refused)):
        opened(bytes(data))


def test_a_newer_file_a_greedy_one_and_another_one_are_refused() -> None:
    data = sealed(b"z")
    with pytest.raises(InvalidInput, match="version 9") as newer:
        opened(data.replace(b'"version": 1', b'"version": 9'))
    assert newer.value.hint == "use a newer mvm"
    with pytest.raises(InvalidInput, match="header"):
        opened(data.replace(b'"log2_n": 4,', b'"log2_n":64,'))
    with pytest.raises(InvalidInput, match="no file that mvm sealed"):
        opened(b"PK\x03\x04 some other file")


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(InvalidInput, match="fewer than 8"):
        SealedWriter(io.BytesIO(), "short")
