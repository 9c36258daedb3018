"""The step of a packed program: N SAEs of one shape are trained by the same GPU kernels.

The mathematics is that of ``ReferenceStep`` with a dimension N in front, by the passes in
``raysae.training.fused``. No operation in a step waits for the host, so on a GPU a step is captured as a
CUDA graph and replayed. The step runs on any device, but on a CPU it is no faster than SAEs trained one
by one.

What is captured has few shapes: a smaller last batch is padded with rows that count for nothing, and
AuxK computes as many columns as the next power of two above the number of latents that can be dead.

Shapes: N SAEs, B batch, D d_in, F d_sae.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raysae.sae import SAE, SAEConfig
from raysae.sae.batch_topk import BatchTopKSAE
from raysae.sae.config import BatchTopKConfig, TopKConfig
from raysae.training import gpu
from raysae.training.config import TrainingConfig
from raysae.training.fused import passes
from raysae.training.fused.adam import Moving, Rates, adam, adam_rows
from raysae.training.fused.aux_k import Dead
from raysae.training.fused.backward import Gradients, Kind, Weights, gradients
from raysae.training.fused.late import LAG, LateNumber
from raysae.training.graphs import Graphs
from raysae.training.memory import SPARSE_SHARE
from raysae.training.step import BETAS, products_in

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
MOMENTS = ("exp_avg", "exp_avg_sq")
AdamState = dict[Tensor, dict[str, Tensor]]
"""Each parameter's moments, under the names that torch's Adam uses."""
LEAST_COLUMNS = 64
"""AuxK computes at least so many columns, and then powers of two, where steps are captured."""
NEVER = 2**62
"""Tokens that no training has: latents of an SAE without AuxK are never dead for it."""


def can_pack(config: SAEConfig) -> bool:
    """Whether SAEs of this config's variant can be packed: TopK and BatchTopK."""
    return type(config) in (TopKConfig, BatchTopKConfig)


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
        self.training, count = trainings[0], len(models)
        self.device = models[0].W_dec.device
        states = adam_states or [defaultdict(dict) for _ in models]
        self._frozen = self.training.frozen == "decoder"
        self.moving = {name: _adopted(models, states, name) for name in PARAMETERS}
        self.p = {name: moving.p for name, moving in self.moving.items()}
        """Each parameter of all SAEs; ``W_enc`` is ``[saes, d_sae, d_in]``."""
        whole_batch = isinstance(models[0], BatchTopKSAE)
        self.threshold_N = _stacked(models, "threshold") if whole_batch else None
        self.rate_N = self._of_each(getattr(m.config, "threshold_rate", 0.0) for m in models)
        self.clip_N = self._of_each(training.gradient_clip for training in trainings)
        self.since_fired_NF = torch.stack(list(tokens_since_fired))
        for since_fired_F, row_F in zip(tokens_since_fired, self.since_fired_NF, strict=True):
            since_fired_F.set_(row_F)
        self.kind = self._kind(models, whole_batch)
        self.copies = self._copied()
        self.has_aux = any(model.config.aux_coefficient for model in models)
        windows = zip(aux_windows, models, strict=True)
        self.window_N = torch.tensor(
            [own if model.config.aux_coefficient else NEVER for own, model in windows],
            device=self.device,
        )
        d_sae = self.since_fired_NF.shape[1]
        rates = [
            [training.peak_lr(d_sae) * training.lr_fraction(step, steps) for step in range(steps)]
            for training in trainings
        ]
        self.lr_SN = torch.tensor(rates, device=self.device).T.contiguous()
        self.step = torch.tensor(taken, device=self.device)
        self.alive_N = torch.ones(count, dtype=torch.bool, device=self.device)
        self.failed_N = torch.full((count,), -1, dtype=torch.int64, device=self.device)
        self.loss_N = torch.zeros(count, device=self.device)
        self.soon_dead = torch.zeros((), dtype=torch.int64, device=self.device)
        """The most latents of an SAE that can be dead at the step that reads it."""
        self._late = LateNumber()
        self._fast = self.training.compiled and gpu.captures(self.alive_N)
        self._graphs = Graphs(self._train)
        self._size = 0
        """Rows of the largest batch so far."""

    def _of_each(self, values: Any) -> Tensor:
        return torch.tensor([float(value) for value in values], device=self.device)

    def _kind(self, models: Sequence[Any], whole_batch: bool) -> Kind:
        ks, (_, d_sae, d_in) = [model.config.k for model in models], self.p["W_dec"].shape
        fast = self.training.compiled and gpu.launches(self.device) and d_in <= passes.WIDEST
        return Kind(
            torch.tensor(ks, device=self.device), max(ks), whole_batch,
            self._of_each(model.config.aux_coefficient for model in models),
            min(max(d_in // 2, 1), d_sae), fast and max(ks) <= SPARSE_SHARE * d_sae, fast,
            self._frozen,
        )  # fmt: skip

    def _copied(self) -> tuple[Tensor, Tensor]:
        """The rows of decoder and encoder in the dtype of the products: themselves in float32."""
        pair = self.p["W_dec"], self.p["W_enc"]
        if self.training.precision != "bfloat16":
            return pair
        return pair[0].bfloat16(), pair[1].bfloat16()

    @torch.no_grad()
    def take(self, x_NBD: Tensor) -> None:
        """Train each SAE on its batch ``[saes, batch, d_in]``, centred and scaled, in float32."""
        with gpu.current(x_NBD.device), products_in(self.training.precision):
            x_NBD, columns, rows = x_NBD.contiguous(), self._aux_columns(), x_NBD.shape[1]
            if self._fast:
                self._size = max(self._size, rows)
                if rows < self._size:
                    x_NBD = torch.nn.functional.pad(x_NBD, (0, 0, 0, self._size - rows))
                self._graphs.take(x_NBD, rows, columns)
            else:
                self._train(x_NBD, torch.tensor(rows, device=self.device), columns)
            if self.has_aux:
                self._late.note(self.soon_dead)

    def _aux_columns(self) -> int:
        """The columns that AuxK computes at this step; 0 when no latent is dead.

        They follow from a number that is two steps old: how many latents can be dead by now. The host
        waits for the last step before the first ones only.
        """
        if not self.has_aux:
            return 0
        dead = self._late.read()
        if dead is None:
            dead = int((self.since_fired_NF >= self.window_N[:, None]).sum(dim=1).amax())
        return self._capacity(dead) if dead else 0

    def _capacity(self, dead: int) -> int:
        """Columns for so many dead latents: on a CPU all, so that bits do not depend on other SAEs."""
        d_sae = self.since_fired_NF.shape[1]
        if not self._fast:
            return d_sae
        return min(max(2 ** (dead - 1).bit_length(), LEAST_COLUMNS), d_sae)

    def release(self, number: int) -> None:
        """Stop training SAE ``number``; its tensors no longer change."""
        self.alive_N[number] = False

    @staticmethod
    def part(model: SAE, tokens_since_fired_F: Tensor) -> None:
        """Give an SAE that leaves tensors of its own, so that those of all can be freed."""
        for name in model.state_dict():
            tensor = model.get_parameter_or_buffer(name)
            tensor.data = tensor.detach().clone()
        tokens_since_fired_F.data = tokens_since_fired_F.clone()

    def _train(self, x_NBD: Tensor, rows: Tensor, columns: int) -> None:
        """A step on batches whose rows from ``rows`` on, a scalar, only pad them."""
        p, (dec_copy_NFD, enc_copy_NFD) = self.p, self.copies
        weights = Weights(
            p["W_enc"], p["b_enc"], p["W_dec"], p["b_dec"], enc_copy_NFD, dec_copy_NFD
        )
        dead_NF = self.since_fired_NF >= self.window_N[:, None]
        dead = Dead.of(dead_NF, columns) if columns else None
        made = gradients(x_NBD, weights, self.kind, rows, dead)
        norm_N = made.norm_N
        fine_N = made.loss_N.isfinite() & norm_N.isfinite()
        self.failed_N.copy_(torch.where(self.alive_N & ~fine_N, self.step, self.failed_N))
        self.alive_N &= fine_N
        self.loss_N.copy_(torch.where(self.alive_N, made.loss_N, self.loss_N))
        self._adam(made, (self.clip_N / (norm_N + 1e-6)).clamp_max(1.0))
        self._count(made, rows)
        self.step += 1

    def _adam(self, made: Gradients, clip_N: Tensor) -> None:
        """Torch's Adam with a learning rate for each SAE; SAEs that are not alive do not change."""
        ones, done = torch.ones_like(clip_N, dtype=torch.float64), self.step + 1
        correction_N = 1 - torch.pow(ones * BETAS[0], done)
        root_N = (1 - torch.pow(ones * BETAS[1], done)).sqrt().float()
        number = self.step.clamp_max(len(self.lr_SN) - 1)
        lr_N = self.lr_SN.index_select(0, number.view(1)).squeeze(0)
        rates = Rates(clip_N, (lr_N / correction_N).float(), root_N[:1], self.alive_N)
        dec, enc = self.moving["W_dec"], self.moving["W_enc"]
        adam_rows(made.latents, dec, enc, self.copies, rates, self.kind.fast, self._frozen)
        adam(self.moving["b_enc"], made.latents.bias_NF, rates)
        adam(self.moving["b_dec"], made.b_dec_ND, rates)

    def _count(self, made: Gradients, rows: Tensor) -> None:
        """Count the tokens since each latent fired; BatchTopK also moves its threshold."""
        counted_NF = torch.where(made.fired_NF, 0, self.since_fired_NF + rows)
        counted_NF = torch.where(self.alive_N[:, None], counted_NF, self.since_fired_NF)
        self.since_fired_NF.copy_(counted_NF)
        ahead = (LAG - 1) * self.training.batch_size
        soon_NF = counted_NF + ahead >= self.window_N[:, None]
        self.soon_dead.copy_(soon_NF.sum(dim=1).amax())
        if self.threshold_N is not None:
            self._move_threshold(self.threshold_N, made.smallest_N)

    def _move_threshold(self, threshold_N: Tensor, smallest_N: Tensor) -> None:
        """See ``BatchKSAE.move_threshold``."""
        rate_N = torch.where(threshold_N > 0, self.rate_N, 1.0)
        moved_N = torch.lerp(threshold_N, smallest_N, rate_N)
        moves_N = smallest_N.isfinite() & self.alive_N
        threshold_N.copy_(torch.where(moves_N, moved_N, threshold_N))


def _adopted(models: Sequence[SAE], states: Sequence[AdamState], name: str) -> Moving:
    """A parameter of all models with its moments; those of each model become views of them. A frozen
    one has none."""
    parameters = [model.get_parameter(name) for model in models]
    if not parameters[0].requires_grad:
        none = parameters[0].new_zeros(len(models), 0)
        return Moving(_stacked(models, name), none, none)
    moments = [
        _viewed(
            [state[parameter].get(moment, torch.zeros_like(parameter)).detach()
             for parameter, state in zip(parameters, states, strict=True)],
            name,
        )
        for moment in MOMENTS
    ]  # fmt: skip
    for number, (parameter, state) in enumerate(zip(parameters, states, strict=True)):
        for moment, (_, rows) in zip(MOMENTS, moments, strict=True):
            state[parameter][moment] = rows[number]
    return Moving(_stacked(models, name), moments[0][0], moments[1][0])


def _stacked(models: Sequence[SAE], name: str) -> Tensor:
    """Stack the models' tensors of that name; each model's tensor becomes a view of the stack."""
    tensors = [model.get_parameter_or_buffer(name) for model in models]
    stacked, rows = _viewed([tensor.detach() for tensor in tensors], name)
    for tensor, row in zip(tensors, rows, strict=True):
        tensor.data = row
    return stacked


def _viewed(tensors: Sequence[Tensor], name: str) -> tuple[Tensor, list[Tensor]]:
    """The tensors stacked, ``W_enc`` as its transpose, and a view of each in its own shape."""
    if name != "W_enc":
        stacked = torch.stack(list(tensors))
        return stacked, list(stacked)
    stacked = torch.stack([tensor.T for tensor in tensors])
    return stacked, [row.T for row in stacked]
