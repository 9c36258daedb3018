"""A transformer with what an analysis needs of it: its parts, its hookpoints, and its predictions scored.

Shapes: P texts of a changed pass, T tokens.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from raysae.analysis.language_model import LanguageModel
from raysae.analysis.scoring import Clean, Effect, Scorer
from raysae.analysis.splicing import Change, Splicer
from raysae.analysis.subject import Subject
from raysae.analysis.token_batches import Text, TokenBatch, batches_of
from raysae.errors import UserError
from raysae.sites import Site
from raysae.transformer.capture import FORWARD_TOKENS


class SplicedModel:
    """A transformer whose activations can be changed, and what that does to its predictions.

    ``tokens`` are the ids of chosen tokens. Raises UserError as ``Splicer`` and ``LanguageModel`` do.
    """

    def __init__(
        self, model: Any, hookpoints: Sequence[str], layers: Sequence[int],
        tokens: tuple[int, ...] = (),
    ):  # fmt: skip
        self.splicer = Splicer(model, hookpoints, layers)
        self.model = LanguageModel(model, self.splicer.tower)
        self.scorer = Scorer(self.model, tokens)

    @classmethod
    def of(
        cls, subject: Subject, sites: Sequence[Site], tokens: tuple[int, ...] = ()
    ) -> "SplicedModel":
        """The subject's transformer, to be changed at these sites."""
        layers = sorted({site.layer for site in sites})
        return cls(subject.transformer.model, subject.source.hookpoints, layers, tokens)

    @property
    def forward_tokens(self) -> int:
        """Tokens of a forward pass, padding included."""
        most = FORWARD_TOKENS[self.model.device.type]
        return min(most, self.model.rows_together) if self.model.whole else most

    def batches(self, texts: Sequence[Text]) -> list[TokenBatch]:
        """The texts in batches of at most ``forward_tokens`` tokens."""
        model = self.model
        return list(batches_of(texts, self.forward_tokens, model.causal, model.padding))

    def block_before(self, layer: int, hookpoint: str | None) -> int | None:
        """The last block that need not run again when rows are changed there; None: all must."""
        if not self.model.resumes:
            return None
        last = layer if self.splicer.hookpoint(hookpoint) == "resid_post" else layer - 1
        return last if last >= 0 else None

    def block_before_all(self, sites: Sequence[Site]) -> int | None:
        """The last block that need not run again when rows are changed at all of the sites."""
        blocks = [self.block_before(site.layer, site.hookpoint) for site in sites]
        return None if None in blocks else min(block for block in blocks if block is not None)

    def clean(self, batch: TokenBatch, keep: Collection[int] = ()) -> Clean:
        """The clean pass of a batch; ``keep`` are blocks whose output is kept."""
        return self.scorer.clean(batch, keep)

    def effect(
        self, clean: Clean, changes: Sequence[Change], block: int | None = None,
        text_P: Tensor | None = None,
    ) -> Effect:  # fmt: skip
        """What changes do to a batch, or to those of its texts whose numbers are ``text_P``: each of
        them may be there several times. The changes' rows count these.

        ``block`` is one that ``clean`` kept: the pass begins after it.
        """
        batch = clean.batch
        text_P = torch.arange(len(batch.texts)) if text_P is None else text_P
        final_PTD = self._final(clean, changes, block, text_P)
        return self.scorer.effect(clean, final_PTD, text_P, self._where(batch, changes, text_P))

    @torch.inference_mode()
    def _final(
        self, clean: Clean, changes: Sequence[Change], block: int | None, text_P: Tensor
    ) -> Tensor:
        ids_PT, mask_PT = clean.batch.ids_BT[text_P], clean.batch.mask_BT[text_P]
        start = None
        if block is not None:
            start = block, clean.streams[block][text_P.to(clean.streams[block].device)]
        size = type(clean.batch.size)(*ids_PT.shape)
        with self.splicer.changed(changes, size):
            return self.model.final(ids_PT, mask_PT, start=start).rows_BTD

    def _where(self, batch: TokenBatch, changes: Sequence[Change], text_P: Tensor) -> Tensor:
        """The places that may differ: of a causal model those from the first changed one on."""
        shape = len(text_P), batch.size.tokens
        first_P = torch.full(shape[:1], shape[1], dtype=torch.int64)
        for change in changes:
            row, column = change.index
            first_P.scatter_reduce_(0, row, column, "amin")
        if not self.model.causal:
            return (first_P < shape[1])[:, None].expand(shape)
        return torch.arange(shape[1]) >= first_P[:, None]


def check_model(subject: Subject) -> None:
    """Raise UserError when the model, its texts or a site's layer are not at hand for an analysis that
    runs the model."""
    subject.need_model()
    store = subject.store
    if not store.manifest.sequences:
        raise UserError(
            f"{store.place}: holds no texts (its provenance is {store.manifest.provenance}); this phase "
            "runs the model over them: give a store that raysae extracted"
        )
    subject.need_store()


def single_tokens(subject: Subject, words: Sequence[str], key: str) -> tuple[int, ...]:
    """The id of each word, which must be one token. Raises UserError, naming ``key``, when one is not."""
    tokenizer: Callable = subject.transformer.tokenizer
    found = []
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(
                f"{key}: {word!r} is {len(ids)} tokens of this model; expected one each"
            )
        found.append(ids[0])
    return tuple(found)
