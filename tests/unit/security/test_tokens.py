"""Tokens and codes."""

from __future__ import annotations

import re

import pytest

from mvm.security.tokens import CODE_ALPHABET, normalised_code, pairing_code, random_token


def test_tokens_are_long_safe_everywhere_and_never_the_same() -> None:
    tokens = {random_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)


def test_chance_comes_in_as_an_argument() -> None:
    assert random_token(lambda count: bytes(count)) == "A" * 43
    assert pairing_code(lambda count: bytes(count)) == "AAAAAA"


def test_codes_use_all_letters_that_nobody_confuses() -> None:
    codes = [pairing_code() for _ in range(2000)]
    assert all(re.fullmatch(r"[A-HJKMNP-Z2-9]{6}", code) for code in codes)
    assert set("".join(codes)) == set(CODE_ALPHABET)
    assert not set("0O1IL") & set(CODE_ALPHABET)


@pytest.mark.parametrize("typed", ["K7QF3M", "k7qf3m", " k7q-f3m\n", "K7Q F3M"])
def test_a_code_is_understood_as_people_type_it(typed: str) -> None:
    assert normalised_code(typed) == "K7QF3M"
