"""Random tokens, and the short codes that people type to pair a sender with a user."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable

TOKEN_BYTES = 32
CODE_ALPHABET = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
"""Without 0, O, 1, I and L, which people take for each other."""
CODE_LENGTH = 6

Entropy = Callable[[int], bytes]
"""Gives that many random bytes."""


def random_token(entropy: Entropy = secrets.token_bytes) -> str:
    """A token of 256 random bits, safe in addresses, headers and environment variables."""
    return base64.urlsafe_b64encode(entropy(TOKEN_BYTES)).rstrip(b"=").decode()


def pairing_code(entropy: Entropy = secrets.token_bytes) -> str:
    """A short code that a person reads out or types: one of 887 million, so limit the guesses and let codes expire."""
    size = len(CODE_ALPHABET) ** CODE_LENGTH
    number = int.from_bytes(entropy(16), "big") % size  # of 2^128: no code is likelier by more than 2^-98
    letters = []
    for _ in range(CODE_LENGTH):
        number, letter = divmod(number, len(CODE_ALPHABET))
        letters.append(CODE_ALPHABET[letter])
    return "".join(letters)


def normalised_code(typed: str) -> str:
    """A code as it was meant: people type lowercase letters, spaces and hyphens."""
    return "".join(typed.split()).replace("-", "").upper()
