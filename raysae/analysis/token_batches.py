"""The texts over which a transformer runs in an analysis, with what follows them, in padded batches.

Shapes: B sequences, T tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.analysis.splicing import Index
from raysae.analysis.subject import Subject
from raysae.errors import UserError
from raysae.sites import PATTERNS, Position
from raysae.transformer.batching import length_batches
from raysae.transformer.layouts import Batch
from raysae.transformer.sequence import TokenSequence
from raysae.transformer.texts import POCKET, read_documents
from raysae.transformer.towers import find_tower, longest_text

if TYPE_CHECKING:
    from raysae.config.source import SourceConfig

AUTO = "auto"
"""The continuation of the pocket problems' prompts, and none of other texts."""


@dataclass(frozen=True)
class Text:
    """A text as the model reads it, with what follows it; its arrays have one item per token."""

    source: TokenSequence
    """The store's sequence: its positions are the sites' positions."""
    token_id: NDArray[np.int32]
    is_text: NDArray[np.bool_]
    """False for special tokens."""
    answer: NDArray[np.bool_]
    """Whether the token is one of the answer."""

    def __len__(self) -> int:
        return len(self.token_id)


def continuation_of(source: "SourceConfig", wanted: str | None) -> str | None:
    """The template over the data set's columns of what follows each text; None: nothing.

    Raises UserError where sequences are not texts of the data set.
    """
    if wanted == AUTO:
        prompts = source.dataset == POCKET and source.text in ("{prompt}", "prompt")
        return "{answer}" if prompts and not source.packing and source.cut == "end" else None
    if wanted is not None and (source.packing or source.chat_column):
        raise UserError(
            "continuation: the sequences of this store are packed, or chats; only what follows a text "
            "that is a sequence of its own can be appended; leave it out (null)"
        )
    return wanted


def texts_of(subject: Subject, split: str, most: int, continuation: str | None) -> list[Text]:
    """The first ``most`` sequences of a split, each with what follows it and its answer marked.

    The answer is what ``continuation`` appends; without it, or where the model cannot read as far, what
    follows the last ``####`` of the text. They are kept until others are asked for, as the items of a
    phase read the same. Raises UserError when the split has no sequence, or the data set cannot be read.
    """
    key = subject.store.digest, split, most, continuation
    if key not in _kept:
        found = _texts(subject, split, most, continuation)
        _kept.clear()
        _kept[key] = found
    return _kept[key]


_kept: dict[tuple, list[Text]] = {}


def _texts(subject: Subject, split: str, most: int, continuation: str | None) -> list[Text]:
    found = list(islice((s for s in subject.sequences(split) if len(s) > 1), most))
    if not found:
        raise UserError(f"{subject.store.place}: its {split} split has no texts")
    template = continuation_of(subject.source, continuation)
    if template is None:
        return [_alone(sequence) for sequence in found]
    following, reach = _following(subject, found, template), _reach(subject)
    whole = [_continued(sequence, following.get(sequence.documents[0])) for sequence in found]
    return [text if reach is None or len(text) <= reach else _alone(text.source) for text in whole]


def _reach(subject: Subject) -> int | None:
    """The tokens that the model can read; None: any number."""
    model = subject.transformer.model.eval()
    return longest_text(model, find_tower(model))


def _following(
    subject: Subject, sequences: Sequence[TokenSequence], template: str
) -> dict[int, list[int]]:
    """The tokens that follow each row of the data set."""
    from raysae.extraction.plan import text_spec

    wanted = {sequence.documents[0] for sequence in sequences}
    spec = replace(text_spec(subject.source), text=template, sequences=max(wanted) + 1)
    tokenizer = subject.transformer.tokenizer
    return {
        document.row: list(tokenizer(document.text, add_special_tokens=False)["input_ids"])
        for document in read_documents(spec)
        if document.row in wanted
    }


def _alone(sequence: TokenSequence) -> Text:
    """A text with nothing after it."""
    answer = np.zeros(len(sequence), np.bool_)
    matches = list(re.finditer(PATTERNS["answer"], sequence.text))
    if matches:
        start, end = matches[-1].span(1)
        answer = (sequence.token_start < end) & (sequence.token_end > start) & sequence.is_text
    return Text(sequence, sequence.token_id, sequence.is_text, answer)


def _continued(sequence: TokenSequence, following: list[int] | None) -> Text:
    """A text with the tokens that follow it, in the place of special tokens at its end."""
    if not following:
        return _alone(sequence)
    end = int(np.flatnonzero(sequence.is_text)[-1]) + 1 if sequence.is_text.any() else len(sequence)
    ids = np.concatenate([sequence.token_id[:end], np.array(following, np.int32)])
    more = np.ones(len(following), np.bool_)
    is_text = np.concatenate([sequence.is_text[:end], more])
    return Text(sequence, ids, is_text, np.concatenate([np.zeros(end, np.bool_), more]))


@dataclass(frozen=True)
class TokenBatch:
    """A right-padded batch; a place predicts the token after it, or of a model that is not causal its
    own."""

    numbers: tuple[int, ...]
    """The numbers of its texts among all."""
    texts: tuple[Text, ...]
    ids_BT: Tensor
    mask_BT: Tensor
    target_BT: Tensor
    """The token that each place predicts."""
    text_BT: Tensor
    """Places that predict a token and are text."""
    special_BT: Tensor
    """Places that predict a token and are special tokens."""
    answer_BT: Tensor
    """Places that predict a token of the answer."""

    @property
    def size(self) -> Batch:
        """Its sequences and tokens, padding included."""
        return Batch(*self.ids_BT.shape)

    def places(self, position: Position, patterns: Sequence[str]) -> Index:
        """The tokens of a site's rows; ``patterns`` are the names of all patterns."""
        found = [text.source.places(position, patterns) for text in self.texts]
        row = np.repeat(np.arange(len(found)), [len(places) for places in found])
        return torch.from_numpy(row), torch.from_numpy(np.concatenate(found))


def batches_of(
    texts: Sequence[Text], tokens: int, causal: bool = True, padding: bool = True
) -> Iterator[TokenBatch]:
    """The texts in batches of similar length, of at most ``tokens`` tokens, padding included."""
    for numbers in length_batches(texts, tokens, padding):
        yield _padded(numbers, [texts[number] for number in numbers], causal)


def _padded(numbers: Sequence[int], texts: Sequence[Text], causal: bool) -> TokenBatch:
    width = max(map(len, texts))
    ids = np.zeros((len(texts), width), np.int64)  # the padding is masked
    mask, is_text, answer = (np.zeros(ids.shape, np.bool_) for _ in range(3))
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text.token_id
        mask[row, : len(text)] = True
        is_text[row, : len(text)] = text.is_text
        answer[row, : len(text)] = text.answer
    predicts, target = mask, ids
    if causal:
        predicts, target, answer = (_next(array) for array in (mask, ids, answer))
    values = ids, mask.astype(np.int64), target, predicts & is_text, predicts & ~is_text
    tensors = (torch.from_numpy(value) for value in (*values, answer & predicts))
    return TokenBatch(tuple(numbers), tuple(texts), *tensors)


def _next(array: NDArray) -> NDArray:
    """Each place's next value; zero at the last."""
    shifted = np.zeros_like(array)
    shifted[:, :-1] = array[:, 1:]
    return shifted
