"""Tokens as they are shown: the text that they stand for; pieces of characters as escapes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from raysae.printable import printable
from raysae.transformer.sequence import TokenSequence

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
UNREADABLE = "\N{REPLACEMENT CHARACTER}"


class TokenNames:
    """The text of each token. Without a tokenizer a token is known by a place where it occurs, or else
    by its number, ``#17``."""

    def __init__(self, tokenizer: Any = None, known: Mapping[int, str] | None = None):
        self.tokenizer, self._names = tokenizer, dict(known or {})

    def __getitem__(self, token_id: int) -> str:
        if token_id not in self._names:
            named = None if self.tokenizer is None else _named(self.tokenizer, token_id)
            self._names[token_id] = f"#{token_id}" if named is None else named
        return self._names[token_id]

    def learn(self, sequence: TokenSequence) -> None:
        """Take the texts of a sequence's tokens, where there is no tokenizer to ask."""
        if self.tokenizer is not None:
            return
        for number, token_id in enumerate(sequence.token_id.tolist()):
            start, end = int(sequence.token_start[number]), int(sequence.token_end[number])
            if 0 <= start < end and token_id not in self._names:
                self._names[token_id] = printable(sequence.text[start:end])


def _named(tokenizer: Any, token_id: int) -> str | None:
    """The text of a token; None when the tokenizer does not know it."""
    try:
        raw = tokenizer.convert_ids_to_tokens(token_id)
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    except Exception:  # a tokenizer may fail on an id that it lacks in whatever way
        return None
    if raw is None:
        return None
    if UNREADABLE not in text:
        # SentencePiece's decoder drops the space before a word
        spaced = raw.startswith("\u2581") and not text.startswith(" ")
        return printable(f" {text}" if spaced else text)
    return _of_bytes(raw) or printable(raw)


def _of_bytes(raw: str) -> str | None:
    """A token that is a piece of a character, as the escapes of its bytes; None when it is none."""
    if found := BYTE.fullmatch(raw):
        return f"\\x{found[1].lower()}"
    table = _byte_table()
    if all(character in table for character in raw):
        return printable(
            bytes(table[character] for character in raw).decode(errors="backslashreplace")
        )
    return None


def _byte_table() -> dict[str, int]:
    """The byte of each character of a byte-level vocabulary (Radford et al. 2019, GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


def pieces(sequence: TokenSequence, names: TokenNames) -> list[str]:
    """The text of each token of a sequence, with what stands between it and the token before.

    Joined they are the text, but for tokens that stand for no text, and those that share a character with
    another, which are shown by their names.
    """
    start, end = sequence.token_start, sequence.token_end
    last = np.maximum.accumulate(np.r_[0, np.maximum(end, 0)])
    known = (start >= 0) & (end > start)
    clash = known & (start < last[:-1])
    clash[:-1] |= clash[1:] & known[:-1]
    shown = []
    for number, token_id in enumerate(sequence.token_id.tolist()):
        if not known[number] or clash[number]:
            shown.append(names[token_id])
        else:
            shown.append(sequence.text[int(last[number]) : int(end[number])])
    return shown
