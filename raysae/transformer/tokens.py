"""From texts to sequences: tokenizing, splitting, and marking each token (text, special, pattern)."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.activations.splits import split_of, split_of_key
from raysae.errors import UserError
from raysae.transformer.chat import ChatWriter, Span, spans_of
from raysae.transformer.packing import Encoded, Frame, Packer
from raysae.transformer.patterns import Pattern, PatternFinder, Places
from raysae.transformer.repeats import Repeats, same_text
from raysae.transformer.sequence import TokenRules, TokenSequence
from raysae.transformer.texts import Document

TOKENIZER_BATCH = 500


@dataclass
class Counts:
    """How many documents were read, cut and left out."""

    documents: int = 0
    cut: int = 0
    """Documents cut because they are longer than the context (not counted when packing)."""
    too_short: int = 0
    """Sequences left out because they are too short for a position, or no pattern matches."""
    dropped: int = 0
    """Documents left out because the same text came before (``TokenRules.repeats``)."""
    double_bos: int = 0
    """Sequences that begin with two BOS tokens: the text's own, and the tokenizer's."""


@dataclass
class Found:
    """What is known of the texts once all are read."""

    counts: Counts = field(default_factory=Counts)
    repeats: Repeats = field(default_factory=Repeats)

    def record(self) -> dict[str, int]:
        """All numbers by name."""
        return {**asdict(self.counts), **self.repeats.record()}


class Tokenizer:
    """A Hugging Face tokenizer with the recipe's rules: context, special tokens, patterns, packing.

    Raises UserError when a pattern needs character offsets and the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, rules: TokenRules):
        self.tokenizer, self.rules = tokenizer, rules
        self.fast = bool(getattr(tokenizer, "is_fast", False))
        self.patterns = [Pattern(name, words) for name, words in rules.patterns.items()]
        self._finder = PatternFinder(self.patterns, rules.prefix)
        self._chats = ChatWriter(tokenizer)
        self.special_ids = np.array(sorted(special_ids(tokenizer)), dtype=np.int32)
        self.found = Found()
        self.counts = self.found.counts
        self.texts = hashlib.sha256()
        self._numbers = _numbers_by_split(rules)
        if self.patterns and not self.fast:
            raise UserError(
                f"{rules.prefix}positions: {', '.join(rules.patterns)} need a tokenizer that tells "
                f"where its tokens lie in the text; {type(tokenizer).__name__} does not"
            )

    def sequences(self, documents: Iterable[Document]) -> Iterator[TokenSequence]:
        """Yield the documents' sequences in order: one per document, or packed.

        The id of a sequence is the next one that lies in the split of its texts. Raises UserError when
        packing leaves no room beside the special tokens, or a chat cannot be written out.
        """
        made = self._packed(documents) if self.rules.packing else self._one_each(documents)
        bos = getattr(self.tokenizer, "bos_token_id", None)
        for sequence in made:
            first = sequence.token_id[:2].tolist()
            self.counts.double_bos += bos is not None and first == [bos, bos]
            yield sequence

    def _one_each(self, documents: Iterable[Document]) -> Iterator[TokenSequence]:
        for split, encoded in self._split(self._encode(documents, whole=False)):
            self.counts.cut += encoded.cut
            first, reach = _extent(encoded, self.rules.cut)
            known = encoded.start >= 0
            yield TokenSequence(
                next(self._numbers[split]),
                [encoded.document.row],
                encoded.document.text[first:reach],
                encoded.token_id,
                np.where(known, encoded.start - first, -1).astype(np.int32),
                np.where(known, encoded.end - first, -1).astype(np.int32),
                np.ones(len(encoded.token_id), bool) if self.rules.special_tokens else ~encoded.special,
                encoded.patterns,
            )  # fmt: skip

    def _packed(self, documents: Iterable[Document]) -> Iterator[TokenSequence]:
        """Sequences of full length. Each holds documents of one split only, so splits never mix."""
        frame = Frame.of(self.tokenizer, self.rules)
        packers = [Packer(frame, self.rules) for _ in range(3)]
        for split, encoded in self._split(self._encode(documents, whole=True)):
            packers[split].add(encoded)
            yield from packers[split].full(self._numbers[split])
        for split, packer in enumerate(packers):
            yield from packer.rest(self._numbers[split])

    def _split(self, encoded: Iterable[Encoded]) -> Iterator[tuple[int, Encoded]]:
        """Yield each document with its split, which follows from its group, or from the text that is
        read of it. Texts that came before are left out where the rules say so."""
        for one in encoded:
            first, reach = _extent(one, self.rules.cut)
            text = same_text(one.document.text[first:reach])
            key = text if one.document.group is None else f"group {one.document.group}"
            split = split_of_key(key, self.rules.validation, self.rules.test)
            new = self.found.repeats.add(text, split)
            if not new and self.rules.repeats == "drop":
                self.counts.dropped += 1
            else:
                yield split, one

    def _encode(self, documents: Iterable[Document], whole: bool) -> Iterator[Encoded]:
        options: dict[str, Any] = {"truncation": True, "max_length": self.rules.context_length}
        if whole:
            options = {"verbose": False}
        self.tokenizer.truncation_side = "left" if self.rules.cut == "start" else "right"
        waiting = iter(documents)
        while read := list(islice(waiting, TOKENIZER_BATCH)):
            batch = self._rendered(read)
            # a chat template writes the special tokens itself
            specials = not whole and not any(document.messages for document, _ in batch)
            encoded = self.tokenizer(
                [document.text for document, _ in batch], return_special_tokens_mask=True,
                return_offsets_mapping=self.fast, return_attention_mask=False,
                add_special_tokens=specials, **options,
            )  # fmt: skip
            places = self._finder.places([(one.text, one.row, spans) for one, spans in batch])
            for number, ((document, _), found) in enumerate(zip(batch, places, strict=True)):
                self.counts.documents += 1
                self.texts.update(document.text.encode() + b"\0")
                yield self._of(document, found, encoded, number)

    def _rendered(self, documents: list[Document]) -> list[tuple[Document, tuple[Span, ...]]]:
        """The documents with their messages written out, and where each message lies."""
        wheres = [f"{self.rules.prefix}chat_column, row {one.row}" for one in documents]
        chats = [(one.messages, where) for one, where in zip(documents, wheres, strict=True)]
        texts = self._chats.texts([chat for chat in chats if chat[0]])
        roles = any(pattern.role for pattern in self.patterns)
        result: list[tuple[Document, tuple[Span, ...]]] = []
        for document, where in zip(documents, wheres, strict=True):
            if not document.messages:
                result.append((document, ()))
                continue
            text = next(texts)
            spans = spans_of(text, document.messages, where) if roles else ()
            result.append((replace(document, text=text), spans))
        return result

    def _of(self, document: Document, places: list[Places], encoded: Any, number: int) -> Encoded:
        token_id = np.array(encoded["input_ids"][number], dtype=np.int32)
        special = np.array(encoded["special_tokens_mask"][number], dtype=bool)
        special |= np.isin(token_id, self.special_ids)
        offsets = encoded["offset_mapping"][number] if self.fast else [(-1, -1)] * len(token_id)
        span = np.array(offsets, dtype=np.int32).reshape(-1, 2)
        span[special] = -1
        cut = (
            bool(encoded.encodings[number].overflowing)
            if self.fast
            else len(token_id) == self.rules.context_length
        )
        patterns = _matches(len(document.text), places, span[:, 0], span[:, 1])
        return Encoded(document, token_id, special, span[:, 0], span[:, 1], patterns, cut)


def special_ids(tokenizer: Any) -> set[int]:
    """The ids that are special to the tokenizer, whoever wrote them.

    A token that only stands for unknown words is text.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    kinds = ("bos", "eos", "pad", "sep", "cls", "mask")
    named = {getattr(tokenizer, f"{kind}_token_id", None) for kind in kinds}
    return ids - ({tokenizer.unk_token_id} - named)


def tokenizer_hash(tokenizer: Any) -> str:
    """The sha256 of the tokenizer's whole definition, or of the vocabulary of a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _extent(encoded: Encoded, cut: str) -> tuple[int, int | None]:
    """First character of the document's text that a token reaches, and the one after the last.

    The whole text when the offsets are not known. What stands before the first token was cut off, or is
    space that the tokenizer leaves out; it is kept unless the beginning was cut off.
    """
    known = encoded.start >= 0
    if not known.any():
        return 0, None
    first = int(encoded.start[known].min()) if cut == "start" and encoded.cut else 0
    return first, int(encoded.end.max())


def _matches(
    length: int, places: list[Places], start: NDArray[Any], end: NDArray[Any]
) -> NDArray[np.int32]:
    """For each token, a bit for each pattern that matches a character of it."""
    bits = np.zeros(len(start), dtype=np.int32)
    for number, found in enumerate(places):
        covered = np.zeros(length + 1, dtype=np.int64)
        for first, last in found:
            covered[first + 1 : last + 1] = 1
        through = covered.cumsum()
        # a special token has start = end = -1 and so covers nothing
        bits |= ((through[end] - through[start]) > 0).astype(np.int32) << number
    return bits


def _numbers_by_split(rules: TokenRules) -> list[Iterator[int]]:
    """For each split, an endless iterator over the sequence ids that belong to it, in order."""

    def of(split: int) -> Iterator[int]:
        start = 0
        while True:
            block = np.arange(start, start + 1024)
            code = split_of(block, rules.validation, rules.test)
            yield from block[code == split].tolist()
            start += 1024

    return [of(split) for split in range(3)]
