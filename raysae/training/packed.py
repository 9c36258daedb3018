"""The step of a packed program: N SAEs of one shape are trained by the same GPU kernels.

The mathematics is that of ``ReferenceStep`` with a dimension N in front. No operation in a step
waits for the host, so on a GPU a step is captured as a CUDA graph and replayed. Where Triton is
installed, TopK's selection and Adam use the kernels in ``raysae.training.gpu``. The step runs on any
device, but on a CPU it is no faster than SAEs trained one by one.

What is captured has few shapes: a smaller last batch is padded with rows that count for nothing, and
AuxK computes as many columns as the next power of two above the number of dead latents.

Shapes: N SAEs, B batch, D d_in, F d_sae, C latents that AuxK reconstructs with.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raysae.sae import SAE, SAEConfig
from raysae.sae.batch_topk import BatchTopKSAE
from raysae.sae.config import BatchTopKConfig, TopKConfig
from raysae.training import gpu
from raysae.training.config import TrainingConfig
from raysae.training.graphs import Graphs
from raysae.training.step import BETAS, EPSILON, products_in

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
AdamState = dict[Tensor, dict[str, Tensor]]
"""Each parameter's moments, under the names that torch's Adam uses."""
LEAST_COLUMNS = 64
"""AuxK computes at least so many columns, and then powers of two, where steps are captured."""


def can_pack(config: SAEConfig) -> bool:
    """Whether SAEs of this config's variant can be packed: TopK and BatchTopK."""
    return type(config) in (TopKConfig, BatchTopKConfig)


class Real(NamedTuple):
    """The rows of a padded batch that are real: the others count for nothing."""

    rows: Tensor
    """Their number, a scalar."""
    padding_B1: Tensor
    """The other rows."""


class PackedStep:
    """Trains ``models`` of one shape and variant, in place.

    The models' tensors, their counters ``tokens_since_fired [d_sae]`` and the moments in their
    ``adam_states`` become views of this object's tensors. ``steps`` is the number of steps of the
    whole training, ``taken`` the number already made. A model whose loss or gradient is not finite
    no longer changes from that step on, and ``failed_N`` holds the number of that step (-1: no
    failure).
    """

    def __init__(
        self, models: Sequence[Any], trainings: Sequence[TrainingConfig],
        aux_windows: Sequence[int], tokens_since_fired: Sequence[Tensor], steps: int,
        adam_states: Sequence[AdamState] | None = None, taken: int = 0,
    ):  # fmt: skip
        self.training, self.whole_batch = trainings[0], isinstance(models[0], BatchTopKSAE)
        device, d_sae = models[0].W_dec.device, models[0].config.d_sae
        self.aux_coefficient = models[0].config.aux_coefficient
        self.k_aux = min(max(models[0].d_in // 2, 1), d_sae)
        self.p = {name: _adopt(models, name) for name in PARAMETERS}
        states = adam_states or [defaultdict(dict) for _ in models]
        self.m = {name: _adopt_moments(models, states, name, "exp_avg") for name in PARAMETERS}
        self.v = {name: _adopt_moments(models, states, name, "exp_avg_sq") for name in PARAMETERS}
        self.threshold_N = _adopt(models, "threshold") if self.whole_batch else None
        self.rate = models[0].config.threshold_rate if isinstance(models[0], BatchTopKSAE) else 0.0
        self.since_fired_NF = torch.stack(list(tokens_since_fired))
        for since_fired_F, row_F in zip(tokens_since_fired, self.since_fired_NF, strict=True):
            since_fired_F.set_(row_F)
        count = len(models)
        self.k_N = torch.tensor([model.config.k for model in models], device=device)
        self.k_max = int(self.k_N.max())
        self.window_N = torch.tensor(list(aux_windows), device=device)
        rates = [
            [training.peak_lr(d_sae) * training.lr_fraction(step, steps) for step in range(steps)]
            for training in trainings
        ]
        self.lr_SN = torch.tensor(rates, device=device).T.contiguous()
        self.step = torch.tensor(taken, device=device)
        self.alive_N = torch.ones(count, dtype=torch.bool, device=device)
        self.failed_N = torch.full((count,), -1, dtype=torch.int64, device=device)
        self.loss_N = torch.zeros(count, device=device)
        self._fast = self.training.compiled and gpu.captures(self.alive_N)
        self._graphs = Graphs(self._train_padded)
        self._size = 0
        """Rows of the largest batch so far."""
        self._none_dead = 0
        """Steps from now on at which no latent can be dead."""

    @torch.no_grad()
    def take(self, x_NBD: Tensor) -> None:
        """Train each SAE on its batch ``[saes, batch, d_in]``, centred and scaled, in float32."""
        with gpu.current(x_NBD.device), products_in(self.training.precision):
            columns, rows = self._aux_columns(), x_NBD.shape[1]
            if not self._fast:
                self._train(x_NBD, columns)
                return
            self._size = max(self._size, rows)
            padded_NBD = torch.nn.functional.pad(x_NBD, (0, 0, 0, self._size - rows))
            self._graphs.take(padded_NBD, rows, columns)

    def _aux_columns(self) -> int:
        """The columns that AuxK computes at this step; 0 when no latent is dead.

        Waits for the device only where a latent may be dead: after a step without dead latents it is
        known how many steps it takes until one can be.
        """
        self._none_dead -= 1
        if not self.aux_coefficient or self._none_dead >= 0:
            return 0
        dead_N = (self.since_fired_NF >= self.window_N[:, None]).sum(dim=1)
        room_N = self.window_N - self.since_fired_NF.amax(dim=1)
        dead, room = torch.stack([dead_N.amax(), room_N.amin()]).tolist()
        if dead:
            return self._capacity(dead)
        self._none_dead = -(-room // self.training.batch_size) - 1
        return 0

    def _capacity(self, dead: int) -> int:
        """Columns for so many dead latents: on a CPU all, which gives the same bits as ever."""
        d_sae = self.since_fired_NF.shape[1]
        if not self._fast:
            return d_sae
        return min(max(2 ** (dead - 1).bit_length(), LEAST_COLUMNS), d_sae)

    def release(self, number: int) -> None:
        """Stop training SAE ``number``; its tensors no longer change."""
        self.alive_N[number] = False

    def _train_padded(self, x_NBD: Tensor, rows: Tensor, columns: int) -> None:
        padding_B = torch.arange(x_NBD.shape[1], device=x_NBD.device) >= rows
        self._train(x_NBD, columns, Real(rows, padding_B[:, None]))

    def _train(self, x_NBD: Tensor, columns: int, real: Real | None = None) -> None:
        x_NBD = x_NBD.where(self.alive_N[:, None, None], 0.0)
        gradients, loss_N, features_NBF = self._gradients(x_NBD, columns, real)
        norm_N = (
            torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients.values()])
            .sum(0)
            .sqrt()
        )
        fine_N = loss_N.isfinite() & norm_N.isfinite()
        self.failed_N.copy_(torch.where(self.alive_N & ~fine_N, self.step, self.failed_N))
        self.alive_N &= fine_N
        self.loss_N.copy_(torch.where(self.alive_N, loss_N, self.loss_N))
        self._adam(gradients, (self.training.gradient_clip / (norm_N + 1e-6)).clamp_max(1.0))
        fired_NF = (features_NBF > 0).any(dim=1)
        rows = x_NBD.shape[1] if real is None else real.rows
        counted_NF = torch.where(fired_NF, 0, self.since_fired_NF + rows)
        self.since_fired_NF.copy_(
            torch.where(self.alive_N[:, None], counted_NF, self.since_fired_NF)
        )
        if self.threshold_N is not None:
            self._move_threshold(self.threshold_N, features_NBF)
        self.step += 1

    def _gradients(
        self, x_NBD: Tensor, columns: int, real: Real | None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        p, rows = self.p, x_NBD.shape[1] if real is None else real.rows
        centered_NBD = x_NBD - p["b_dec"][:, None]
        pre_NBF = self._product(centered_NBD, p["W_enc"]) + p["b_enc"][:, None]
        features_NBF = self._select(_without_padding(pre_NBF, real), rows)
        error_NBD = self._product(features_NBF, p["W_dec"]) + p["b_dec"][:, None] - x_NBD
        loss_N = _mean(_without_padding(error_NBD, real).square().sum(dim=2), real)
        back_NBD = error_NBD * (2 / rows)
        dz_NBF = self._product(back_NBD, p["W_dec"].mT) * (features_NBF > 0)
        dec_NFD = self._product(features_NBF.mT, back_NBD)
        if columns:
            dead = self._dead(columns)
            aux_N, aux_dz_NBC, aux_dec_NCD = self._aux_k(pre_NBF, error_NBD, dead, real)
            loss_N, dz_NBF = loss_N + aux_N, _add(dz_NBF, aux_dz_NBC, dead.index_NC, 2)
            dec_NFD = _add(dec_NFD, aux_dec_NCD, dead.index_NC, 1)
        dec_NFD = dec_NFD - (dec_NFD * p["W_dec"]).sum(dim=2, keepdim=True) * p["W_dec"]
        bias_NF = dz_NBF.sum(dim=1)
        through_ND = (p["W_enc"] @ bias_NF[:, :, None]).squeeze(2)
        gradients = {
            "W_enc": self._product(centered_NBD.mT, dz_NBF),
            "b_enc": bias_NF,
            "W_dec": dec_NFD,
            "b_dec": back_NBD.sum(dim=1) - through_ND,
        }
        return gradients, loss_N, features_NBF

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """A batched matrix product in the training's precision, as float32."""
        if self.training.precision == "bfloat16":
            return (a.bfloat16() @ b.bfloat16()).float()
        return a @ b

    def _launches(self, tensor: Tensor) -> bool:
        return self.training.compiled and gpu.launches(tensor)

    def _select(self, pre_NBF: Tensor, rows: int | Tensor) -> Tensor:
        """Features: each SAE's k largest positive values of a row, or k times ``rows`` of its batch."""
        if not self.whole_batch and self._launches(pre_NBF):
            return gpu.select_rows(pre_NBF, self.k_N)
        ranked = pre_NBF.flatten(1) if self.whole_batch else pre_NBF
        wanted_N = self.k_N * rows if self.whole_batch else self.k_N
        most = self.k_max * (pre_NBF.shape[1] if self.whole_batch else 1)
        values, indices = ranked.topk(most, dim=-1)
        rank = torch.arange(values.shape[-1], device=values.device)
        within = rank < wanted_N.view(-1, *[1] * (values.dim() - 1))
        selected = torch.zeros_like(ranked).scatter(-1, indices, values.relu() * within)
        return selected.view_as(pre_NBF)

    def _dead(self, columns: int) -> "Dead":
        """The dead latents, in so many columns."""
        dead_NF = self.since_fired_NF >= self.window_N[:, None]
        if columns == dead_NF.shape[1]:
            return Dead(dead_NF, None, self.p["W_dec"])
        index_NC = dead_NF.sort(dim=1, descending=True, stable=True).indices[:, :columns]
        index_NCD = index_NC[:, :, None].expand(-1, -1, self.p["W_dec"].shape[2])
        return Dead(dead_NF.gather(1, index_NC), index_NC, self.p["W_dec"].gather(1, index_NCD))

    def _aux_k(
        self, pre_NBF: Tensor, error_NBD: Tensor, dead: "Dead", real: Real | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted AuxK loss and its gradients for pre-activations and decoder rows."""
        rows = error_NBD.shape[1] if real is None else real.rows
        dead_NC, pre_NBC = dead.dead_NC, _columns(pre_NBF, dead.index_NC, 2)
        of_dead_NBC = pre_NBC.masked_fill(~dead_NC[:, None], -torch.inf)
        values, indices = of_dead_NBC.topk(min(self.k_aux, dead_NC.shape[1]), sorted=False)
        features_NBC = torch.zeros_like(pre_NBC).scatter(-1, indices, values.relu())
        residual_NBD = -error_NBD - self._product(features_NBC, dead.W_dec_NCD)
        mean_ND = _mean(error_NBD, real)
        offset_NBD = _without_padding(error_NBD - mean_ND[:, None], real)
        spread_N = _mean(offset_NBD.square().sum(dim=2), real)
        weight_N = self.aux_coefficient * error_NBD.shape[2] / spread_N.clamp_min(1e-12)
        weight_N = weight_N * dead_NC.any(dim=1)
        loss_N = weight_N * _mean(residual_NBD.square().sum(dim=2), real)
        back_NBD = residual_NBD * (-2 * weight_N / rows)[:, None, None]
        dz_NBC = self._product(back_NBD, dead.W_dec_NCD.mT) * (features_NBC > 0)
        return loss_N, dz_NBC, self._product(features_NBC.mT, back_NBD)

    def _adam(self, gradients: dict[str, Tensor], clip_N: Tensor) -> None:
        """Torch's Adam with a learning rate for each SAE; SAEs that are not alive do not change."""
        ones, done = torch.ones_like(clip_N, dtype=torch.float64), self.step + 1
        correction_N = 1 - torch.pow(ones * BETAS[0], done)
        root_N = (1 - torch.pow(ones * BETAS[1], done)).sqrt().float()
        lr_N = self.lr_SN.index_select(0, self.step.view(1)).squeeze(0)
        rate_N = torch.where(self.alive_N, (lr_N / correction_N).float(), 0.0)
        for name, gradient in gradients.items():
            if gradient.dim() == 3 and self._launches(gradient):
                gpu.adam_rows(
                    self.p[name], gradient, self.m[name], self.v[name], clip_N, rate_N,
                    root_N[:1], self.alive_N, BETAS, EPSILON, unit=name == "W_dec",
                )  # fmt: skip
                continue
            shape = (-1, *[1] * (gradient.dim() - 1))
            clipped = (gradient * clip_N.view(shape)).where(self.alive_N.view(shape), 0.0)
            self.m[name].lerp_(clipped, 1 - BETAS[0])
            self.v[name].mul_(BETAS[1]).addcmul_(clipped, clipped, value=1 - BETAS[1])
            scale = self.v[name].sqrt().div_(root_N.view(shape)).add_(EPSILON)
            self.p[name].sub_(self.m[name] / scale * rate_N.view(shape))
        W_dec_NFD = self.p["W_dec"]
        if self._launches(W_dec_NFD):
            return
        smallest = torch.finfo(torch.float32).tiny
        unit_NFD = W_dec_NFD / W_dec_NFD.norm(dim=2, keepdim=True).clamp_min(smallest)
        W_dec_NFD.copy_(torch.where(self.alive_N[:, None, None], unit_NFD, W_dec_NFD))

    def _move_threshold(self, threshold_N: Tensor, features_NBF: Tensor) -> None:
        """See ``BatchKSAE.move_threshold``."""
        smallest_N = torch.where(features_NBF > 0, features_NBF, torch.inf).flatten(1).amin(dim=1)
        rate_N = torch.where(threshold_N > 0, self.rate, 1.0)
        moved_N = torch.lerp(threshold_N, smallest_N, rate_N)
        moves_N = smallest_N.isfinite() & self.alive_N
        threshold_N.copy_(torch.where(moves_N, moved_N, threshold_N))


class Dead(NamedTuple):
    """The dead latents, in columns that may hold others, too."""

    dead_NC: Tensor
    """Which columns are of dead latents."""
    index_NC: Tensor | None
    """The latent of each column; None: all latents in their order."""
    W_dec_NCD: Tensor
    """Their decoder rows."""


def _columns(whole: Tensor, index_NC: Tensor | None, dim: int) -> Tensor:
    """Those columns of ``[saes, batch, d_sae]`` (``dim`` 2) or rows of ``[saes, d_sae, *]`` (1)."""
    return whole if index_NC is None else whole.gather(dim, _spread(whole, index_NC, dim))


def _add(whole: Tensor, part: Tensor, index_NC: Tensor | None, dim: int) -> Tensor:
    """Add ``part`` to those columns or rows; no two are the same, so the order does not matter."""
    if index_NC is None:
        return whole + part
    return whole.scatter_(dim, _spread(whole, index_NC, dim), part + _columns(whole, index_NC, dim))


def _spread(whole: Tensor, index_NC: Tensor, dim: int) -> Tensor:
    other = whole.shape[3 - dim]
    index = index_NC[:, None].expand(-1, other, -1)
    return index if dim == 2 else index.mT


def _without_padding(values: Tensor, real: Real | None) -> Tensor:
    """``[saes, batch, *]`` with 0 in the rows that only pad the batch, in place."""
    return values if real is None else values.masked_fill_(real.padding_B1, 0.0)


def _mean(values: Tensor, real: Real | None) -> Tensor:
    """The mean over the batch of ``[saes, batch]`` or ``[saes, batch, *]``, where padding is 0."""
    return values.mean(dim=1) if real is None else values.sum(dim=1) / real.rows


def _adopt(models: Sequence[SAE], name: str) -> Tensor:
    """Stack the models' tensors of that name; each model's tensor becomes a view of the stack."""
    stacked = torch.stack([model.get_parameter_or_buffer(name).detach() for model in models])
    for model, row in zip(models, stacked, strict=True):
        model.get_parameter_or_buffer(name).data = row
    return stacked


def _adopt_moments(
    models: Sequence[SAE], states: Sequence[AdamState], name: str, moment: str
) -> Tensor:
    """Stack a moment of one parameter over all models; each state's moment becomes a view."""
    parameters = [model.get_parameter(name) for model in models]
    stacked = torch.stack([
        state[parameter].get(moment, torch.zeros_like(parameter)).detach()
        for parameter, state in zip(parameters, states, strict=True)
    ])  # fmt: skip
    for parameter, state, row in zip(parameters, states, stacked, strict=True):
        state[parameter][moment] = row
    return stacked
