"""Rows of two models over the same texts, aligned where their tokens end at the same character.

Two causal models have then read the same characters. Texts are the same when their content is, or when
one is the beginning of the other, as where contexts cut them at different places.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.site_latents import SiteLatents
from raysae.transformer.sequence import TokenSequence

LEAST_CHARACTERS = 20
"""A text that is the beginning of another is the same text only from this length on."""


@dataclass(frozen=True)
class Ends:
    """Where the tokens of some texts end."""

    text_of: Mapping[int, int]
    """The number of the text, common to both models, by the sequence's number."""
    end_of: Mapping[int, NDArray[np.int32]]
    """The place after each token's last character, -1 where it is not known, by sequence."""


def same_texts(
    first: Iterable[TokenSequence], second: Iterable[TokenSequence]
) -> tuple[Ends, Ends, dict[int, TokenSequence]]:
    """The texts that both models have read, each once: their tokens' ends on either side, and the
    second's sequences. Only ``first`` and the matches are held in memory."""
    mine: dict[str, TokenSequence] = {}
    for one in first:
        mine.setdefault(one.text, one)
    texts = sorted(mine)
    found: dict[str, TokenSequence] = {}
    for other in second:
        text = _same(texts, mine, other.text)
        if text is not None and text not in found:
            found[text] = other
    sides: list[Ends] = []
    for some in (mine, found):
        number = {some[text].sequence: at for at, text in enumerate(texts) if text in found}
        ends = {some[text].sequence: some[text].token_end for text in found}
        sides.append(Ends(number, ends))
    return sides[0], sides[1], {one.sequence: one for one in found.values()}


def _same(texts: list[str], known: Mapping[str, TokenSequence], text: str) -> str | None:
    """Which of the sorted ``texts`` is ``text``, begins with it, or is its beginning."""
    if text in known:
        return text
    place = bisect_left(texts, text)
    if len(text) >= LEAST_CHARACTERS and place < len(texts) and texts[place].startswith(text):
        return texts[place]
    before = texts[place - 1] if place else ""
    return before if len(before) >= LEAST_CHARACTERS and text.startswith(before) else None


def by_character(latents: SiteLatents, ends: Ends) -> SiteLatents:
    """The rows of the common texts, their sequence being the text's number and their token the place
    where it ends; where several tokens end there, the last one's row."""
    rows = [
        (ends.text_of[sequence], int(ends.end_of[sequence][token]), row)
        for row, (sequence, token) in enumerate(
            zip(latents.sequence.tolist(), latents.token_index.tolist(), strict=True)
        )
        if sequence in ends.text_of
    ]
    last = {(text, end): row for text, end, row in rows if end >= 0}
    keys = sorted(last)
    taken = latents.take(np.array([last[key] for key in keys], np.int64))
    return SiteLatents(
        taken.active_NF, np.array([text for text, _ in keys], np.int64),
        np.array([end for _, end in keys], np.int32),
    )  # fmt: skip
