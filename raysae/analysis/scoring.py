"""What a change of activations does to a model's predictions: sums over the places of each text.

Shapes: B texts, P texts of a changed pass, T tokens, N places, D d_in, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from raysae.analysis.language_model import LanguageModel
from raysae.analysis.token_batches import TokenBatch

KEPT_LOGITS = 2**25
"""A batch's clean log-probabilities are kept where they are at most so many values."""


@dataclass(frozen=True)
class Clean:
    """A batch's pass without changes; sums are over the places of each text, ``[B]``, float64."""

    batch: TokenBatch
    final_BTD: Tensor
    ce_BT: Tensor
    """Cross-entropy in nats at each place; zero without a head."""
    wrong_BT: Tensor
    """Whether another token than the target is the likeliest."""
    logp_BTV: Tensor | None
    streams: dict[int, Tensor]
    """What each block that was kept gave."""

    def sums(self, what_BT: Tensor, places_BT: Tensor) -> Tensor:
        """The sums of ``what_BT`` over ``places_BT`` of each text."""
        return (what_BT.double() * places_BT).sum(dim=1)


@dataclass(frozen=True)
class Effect:
    """What a change does to each text of a pass: sums over its places, ``[P]``, float64."""

    ce: Tensor
    """Changed minus clean cross-entropy at text places, in nats."""
    kl: Tensor
    """KL(clean || changed) at text places, in nats."""
    away: Tensor
    """1 - cosine of clean and changed final rows at text places."""
    ce_special: Tensor
    kl_special: Tensor
    wrong: Tensor
    """Wrong tokens of the answer, changed minus clean."""
    ce_answer: Tensor
    """Changed minus clean cross-entropy of the answer's tokens."""
    tokens: Tensor
    """``[P, tokens]``: changed minus clean log-probability of the chosen tokens at text places."""


SUMS = ("ce", "kl", "away", "ce_special", "kl_special", "wrong", "ce_answer")
"""The sums of an effect, one a text."""


class Scorer:
    """Compares changed passes of a model with clean ones; ``tokens`` are the ids of chosen tokens."""

    def __init__(self, model: LanguageModel, tokens: tuple[int, ...] = ()):
        self.model = model
        self.tokens = torch.tensor(tokens, dtype=torch.int64)

    @torch.inference_mode()
    def clean(self, batch: TokenBatch, keep: Collection[int] = ()) -> Clean:
        """The clean pass of a batch; ``keep`` are blocks whose output is kept."""
        final = self.model.final(batch.ids_BT, batch.mask_BT, keep=keep)
        ce_BT = torch.zeros(batch.ids_BT.shape, dtype=torch.float64)
        wrong_BT = torch.zeros(batch.ids_BT.shape, dtype=torch.bool)
        if not self.model.has_head:
            return Clean(batch, final.rows_BTD, ce_BT, wrong_BT, None, final.streams)
        kept: list[Tensor] = []
        keeps = batch.ids_BT.numel() * self.model.vocabulary <= KEPT_LOGITS
        for row, column in _pieces(batch.mask_BT > 0, self.model.rows_together):
            logp_NV = self.model.logits(final.rows_BTD[row, column]).log_softmax(dim=-1)
            target_N = batch.target_BT[row, column].to(logp_NV.device)
            ce_BT[row, column] = -_at(logp_NV, target_N).double().cpu()
            wrong_BT[row, column] = (logp_NV.argmax(dim=-1) != target_N).cpu()
            kept += [logp_NV] if keeps else []
        logp_BTV = _spread(kept, batch.mask_BT > 0) if keeps else None
        return Clean(batch, final.rows_BTD, ce_BT, wrong_BT, logp_BTV, final.streams)

    @torch.inference_mode()
    def effect(self, clean: Clean, changed_PTD: Tensor, text_P: Tensor, where_PT: Tensor) -> Effect:
        """What a changed pass does: ``changed_PTD`` are its final rows, ``text_P`` the numbers of its
        texts in the clean batch, ``where_PT`` the places that may differ."""
        batch = clean.batch
        where_PT = where_PT & (batch.text_BT | batch.special_BT)[text_P]
        sums = torch.zeros(len(text_P), len(SUMS) + len(self.tokens), dtype=torch.float64)
        for row, column in _pieces(where_PT, self.model.rows_together):
            number = text_P[row]
            values_NC = self._values(clean, changed_PTD[row, column], number, column)
            special_N = batch.special_BT[number, column]
            answer_N = batch.answer_BT[number, column]
            sums.index_add_(0, row, _by_kind(values_NC, special_N, answer_N))
        columns = {name: sums[:, place] for place, name in enumerate(SUMS)}
        return Effect(**columns, tokens=sums[:, len(SUMS) :])

    def _values(self, clean: Clean, changed_ND: Tensor, number: Tensor, column: Tensor) -> Tensor:
        """For each place: change of CE, KL, distance, change of wrong, and of each chosen token."""
        original_ND = clean.final_BTD[number, column]
        if not self.model.has_head:
            one, other = original_ND.double(), changed_ND.double()
            away_N = 1 - torch.cosine_similarity(one, other, dim=-1)
            zero_N = torch.zeros_like(away_N)
            return torch.stack([zero_N, zero_N, away_N, zero_N], dim=1).cpu()
        logp_NV = self.model.logits(changed_ND).log_softmax(dim=-1)
        clean_NV = self._clean(clean, original_ND, number, column)
        target_N = clean.batch.target_BT[number, column].to(logp_NV.device)
        kl_N = (clean_NV.exp() * (clean_NV - logp_NV)).sum(dim=-1).double().cpu()
        ce_N = -_at(logp_NV, target_N).double().cpu() - clean.ce_BT[number, column]
        wrong_N = (logp_NV.argmax(dim=-1) != target_N).cpu().double()
        wrong_N -= clean.wrong_BT[number, column].double()
        tokens = self.tokens.to(logp_NV.device)
        told_NC = (logp_NV[:, tokens] - clean_NV[:, tokens]).double().cpu()
        zero_N = torch.zeros_like(kl_N)
        return torch.cat([torch.stack([ce_N, kl_N, zero_N, wrong_N], dim=1), told_NC], dim=1)

    def _clean(self, clean: Clean, rows_ND: Tensor, number: Tensor, column: Tensor) -> Tensor:
        if clean.logp_BTV is not None:
            return clean.logp_BTV[number, column]
        return self.model.logits(rows_ND).log_softmax(dim=-1)


def _by_kind(values_NC: Tensor, special_N: Tensor, answer_N: Tensor) -> Tensor:
    """The columns of ``Effect`` for each place."""
    text_N1, special_N1 = (~special_N).double()[:, None], special_N.double()[:, None]
    answer_N1 = answer_N.double()[:, None]
    ce_kl_away_N3, wrong_N1, tokens_NC = values_NC[:, :3], values_NC[:, 3:4], values_NC[:, 4:]
    parts = [
        ce_kl_away_N3 * text_N1, ce_kl_away_N3[:, :2] * special_N1,
        wrong_N1 * answer_N1, values_NC[:, :1] * answer_N1,
        tokens_NC * text_N1,
    ]  # fmt: skip
    return torch.cat(parts, dim=1)


def _pieces(where: Tensor, together: int) -> list[tuple[Tensor, Tensor]]:
    row, column = where.nonzero(as_tuple=True)
    return list(zip(row.split(together), column.split(together), strict=True))


def _at(logp_NV: Tensor, target_N: Tensor) -> Tensor:
    return logp_NV.gather(1, target_N[:, None])[:, 0]


def _spread(kept: list[Tensor], where_BT: Tensor) -> Tensor:
    """Rows of places as ``[B, T, V]``, zero elsewhere."""
    logp_NV = torch.cat(kept)
    spread_BTV = logp_NV.new_zeros(*where_BT.shape, logp_NV.shape[-1])
    spread_BTV[where_BT.to(logp_NV.device)] = logp_NV
    return spread_BTV
