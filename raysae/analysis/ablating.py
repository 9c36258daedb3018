"""Features of an SAE ablated, clamped or steered in the model, many in one forward pass.

The SAE's error stays in the stream, so that only the features change. A pass holds pairs of a text and a
feature; it begins after the last block that does not change. Shapes: S texts, G groups of features,
B texts of a batch, P pairs, N rows, J chosen features, D d_in.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.analysis.scoring import SUMS, Clean, Effect
from raysae.analysis.spliced_model import SplicedModel
from raysae.analysis.splicing import Change, added, read_into
from raysae.analysis.token_batches import Text, TokenBatch
from raysae.sae import SAE
from raysae.sites import Site

Mode = Literal["zero", "mean", "clamp", "steer"]
ENCODED = 2**25
"""Features of rows that are in memory at a time."""


@dataclass(frozen=True)
class Treatment:
    """What is done to a feature at every row of the site."""

    mode: Mode = "zero"
    value: float = 0.0
    """The value of ``clamp``; of ``steer`` the length that is added along the decoder's direction."""
    mean: NDArray[np.float64] | None = None
    """The mean of every feature, for ``mean``."""

    def coefficients(self, features_NJ: Tensor, numbers: Tensor, norm_J: Tensor) -> Tensor:
        """How many times its decoder row each feature adds to each row, ``[N, J]``."""
        if self.mode == "steer":
            return (self.value / norm_J).expand_as(features_NJ)
        wanted_J = torch.full_like(norm_J, self.value if self.mode == "clamp" else 0.0)
        if self.mode == "mean":
            assert self.mean is not None, "the phase measures it"
            wanted_J = torch.from_numpy(self.mean).to(norm_J)[numbers.to(norm_J.device)]
        return wanted_J - features_NJ


@dataclass(frozen=True)
class Effects:
    """What groups of features do to texts; zero where a group changes nothing."""

    sums: dict[str, NDArray[np.float64]]
    """By name of ``SUMS``, ``[S, G]``: changed minus clean, summed over a text's places."""
    tokens: NDArray[np.float64]
    """``[S, G, tokens]``: changed minus clean log-probability of the chosen tokens."""
    changed: NDArray[np.bool_]
    """``[S, G]``: whether the group changes a row of the text."""


@dataclass(frozen=True)
class Texts:
    """What the texts have without changes, ``[S]``."""

    tokens: NDArray[np.float64]
    """Places that are text and predict a token; zero for a text without a row at the site."""
    ce: NDArray[np.float64]
    answer: NDArray[np.float64]
    """Tokens of the answer."""
    wrong: NDArray[np.float64]


class Ablator:
    """Treats groups of features of one site's SAE, a feature alone or several at once."""

    def __init__(
        self, model: SplicedModel, site: Site, sae: SAE, patterns: Sequence[str],
        treatment: Treatment,
    ):  # fmt: skip
        self.model, self.site, self.sae = model, site, sae
        self.patterns, self.treatment = list(patterns), treatment
        self.block = model.block_before(site.layer, site.hookpoint)

    def run(
        self, texts: Sequence[Text], groups: Sequence[Sequence[int]], alive: Callable[[], None]
    ) -> tuple[Texts, Effects]:
        """Every group's effect on every text; ``alive`` is called after every forward pass."""
        numbers = sorted({feature for group in groups for feature in group})
        shape = len(texts), len(groups)
        sums = {name: np.zeros(shape) for name in SUMS}
        tokens = np.zeros((*shape, len(self.model.scorer.tokens)))
        changed = np.zeros(shape, np.bool_)
        clean_texts = np.zeros((4, len(texts)))
        for batch in self.model.batches(texts):
            clean, x_ND, index = self._clean(batch)
            alive()
            if not len(x_ND):
                continue
            clean_texts[:, list(batch.numbers)] = _clean_sums(clean, index[0])
            coefficients_NJ = self._coefficients(x_ND, torch.tensor(numbers))
            rows = _Rows(batch, index, coefficients_NJ, numbers)
            for text_P, group_P, effect in self._effects(clean, rows, groups, alive):
                place = np.array(batch.numbers)[text_P.numpy()], group_P.numpy()
                for name in SUMS:
                    sums[name][place] = getattr(effect, name).numpy()
                tokens[place] = effect.tokens.numpy()
                changed[place] = True
        return Texts(*clean_texts), Effects(sums, tokens, changed)

    def _clean(self, batch: TokenBatch) -> tuple[Clean, Tensor, tuple[Tensor, Tensor]]:
        """The clean pass, the site's rows, and their places."""
        site, found = self.site, list[Tensor]()
        index = batch.places(site.position, self.patterns)
        read = Change(site.layer, index, read_into(found), site.hookpoint)
        kept = [] if self.block is None else [self.block]
        with self.model.splicer.changed([read], batch.size):
            clean = self.model.clean(batch, kept)
        return clean, found[0], index

    @torch.no_grad()
    def _coefficients(self, x_ND: Tensor, numbers: Tensor) -> Tensor:
        together = max(1, ENCODED // self.sae.config.d_sae)
        parts = [
            self.sae.encode(part.to(self.sae.W_dec))[:, numbers.to(x_ND.device)]
            for part in x_ND.split(together)
        ]
        norm_J = self.sae.W_dec[numbers].norm(dim=1)
        return self.treatment.coefficients(torch.cat(parts), numbers, norm_J)

    def _effects(
        self, clean: Clean, rows: "_Rows", groups: Sequence[Sequence[int]],
        alive: Callable[[], None],
    ) -> Iterator[tuple[Tensor, Tensor, Effect]]:  # fmt: skip
        pairs = max(1, self.model.forward_tokens // clean.batch.size.tokens)
        text_P, group_P = rows.pairs(groups)
        if not len(text_P):  # no feature is active in these texts
            return
        for text, group in zip(text_P.split(pairs), group_P.split(pairs), strict=True):
            index, delta_ND = rows.changes(text, group, groups, self.sae.W_dec.detach())
            change = Change(self.site.layer, index, added(delta_ND), self.site.hookpoint)
            yield text, group, self.model.effect(clean, [change], self.block, text)
            alive()


class _Rows:
    """A batch's rows at the site, with how much of each feature's decoder row is added to them."""

    def __init__(
        self, batch: TokenBatch, index: tuple[Tensor, Tensor], coefficients_NJ: Tensor,
        numbers: Sequence[int],
    ):  # fmt: skip
        self.text_N, self.column_N = index
        self.coefficients_NJ, self.texts = coefficients_NJ, len(batch.texts)
        self.place = {feature: place for place, feature in enumerate(numbers)}
        self.numbers = torch.tensor(numbers)
        count_B = torch.bincount(self.text_N, minlength=self.texts)
        self.count_B, self.start_B = count_B, count_B.cumsum(0) - count_B

    def pairs(self, groups: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The texts and groups where a group changes a row."""
        touched_BJ = torch.zeros(self.texts, len(self.numbers))
        active_NJ = (self.coefficients_NJ != 0).float().cpu()
        touched_BJ.index_add_(0, self.text_N, active_NJ)
        columns = [
            (touched_BJ[:, [self.place[f] for f in group]] > 0).any(dim=1) for group in groups
        ]
        group_P, text_P = torch.stack(columns).nonzero(as_tuple=True)
        return text_P, group_P

    def changes(
        self, text_P: Tensor, group_P: Tensor, groups: Sequence[Sequence[int]], W_dec_FD: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The places of a pass's rows that change, and what is added to them, ``[N, D]``."""
        pair_N = torch.arange(len(text_P)).repeat_interleave(self.count_B[text_P])
        first_P = self.count_B[text_P].cumsum(0) - self.count_B[text_P]
        row_N = self.start_B[text_P[pair_N]] + torch.arange(len(pair_N)) - first_P[pair_N]
        if max(len(groups[group]) for group in group_P.unique().tolist()) == 1:
            place_P = torch.tensor([self.place[groups[group][0]] for group in group_P.tolist()])
            value_N = self.coefficients_NJ[row_N, place_P[pair_N]]
            moved = (value_N != 0).cpu()
            pair_N, row_N, value_N = pair_N[moved], row_N[moved], value_N[moved]
            delta_ND = value_N[:, None] * W_dec_FD[self.numbers[place_P[pair_N]]]
            return (pair_N, self.column_N[row_N]), delta_ND
        delta_ND = W_dec_FD.new_zeros(len(row_N), W_dec_FD.shape[1])
        for group in group_P.unique().tolist():
            mine = group_P[pair_N] == group
            places = torch.tensor([self.place[feature] for feature in groups[group]])
            values_NJ = self.coefficients_NJ[row_N[mine]][:, places]
            delta_ND[mine] = values_NJ @ W_dec_FD[self.numbers[places]]
        return (pair_N, self.column_N[row_N]), delta_ND


def _clean_sums(clean: Clean, text_N: Tensor) -> NDArray[np.float64]:
    """The figures of ``Texts`` for a batch; zero for texts without a row."""
    batch = clean.batch
    has_B = torch.zeros(len(batch.texts), dtype=torch.float64)
    has_B[text_N] = 1.0
    found = [
        batch.text_BT.sum(dim=1).double(), (clean.ce_BT * batch.text_BT).sum(dim=1),
        batch.answer_BT.sum(dim=1).double(), (clean.wrong_BT & batch.answer_BT).sum(dim=1).double(),
    ]  # fmt: skip
    return (torch.stack(found) * has_B).numpy()
