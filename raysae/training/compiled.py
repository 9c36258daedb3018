"""The compiled CPU step of TopK and BatchTopK: the mathematics of ``ReferenceStep``, faster.

- Forward and backward pass use the active latents only, unless so many latents are active that
  whole matrix products are faster.
- Selection searches for a threshold instead of sorting.
- No gradient is computed for x, nor for latents that did not fire.
- Gradient clipping, Adam, the unit norm and the bfloat16 copies are one pass over the weights.

Shapes: B batch, D d_in, F d_sae, N selected entries of the batch, C latents that AuxK reconstructs
with.
"""

import math
from collections.abc import Callable
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor

from raysae.sae import SAE
from raysae.sae.batch_topk import BatchTopKSAE
from raysae.sae.topk import TopKSAE
from raysae.training.config import TrainingConfig
from raysae.training.kernels import Adam, Kernels, kernels
from raysae.training.step import BETAS, EPSILON, ReferenceStep, Step

DENSE_FRACTION = {torch.bfloat16: 1 / 16, torch.float32: 1 / 4}
"""From this fraction of active latents on, matrix products are faster (AMX, AVX-512)."""
MOMENTS = ("exp_avg", "exp_avg_sq")
NO_EXTRA = (None,) * 5
NO_CALL: tuple[tuple[object, ...], Callable[[], int]] = (), int


def step_of(model: SAE, training: TrainingConfig, device: str) -> Step:
    """The fastest available step for ``model`` on ``device``: compiled, or plain torch.

    The kernels train all weights: a training with frozen ones is plain torch.
    """
    compiled = training.compiled and torch.device(device).type == "cpu" and not training.frozen
    if compiled and type(model) in (TopKSAE, BatchTopKSAE) and (built := kernels()):
        return CompiledStep(model, training, built)
    return ReferenceStep(model, training)


class Extra(NamedTuple):
    """AuxK's part of the gradients, for the latents that AuxK reconstructs with."""

    slot_F: Tensor
    """The row of each latent in the tensors below; -1 for a latent that has none."""
    dec_CD: Tensor
    enc_CD: Tensor
    bias_C: Tensor
    parallel_C: Tensor


class Views(NamedTuple):
    """Views of the buffers for a batch of B rows, as the matrix products need them."""

    shape: tuple[int, int, int]
    """B, F, D."""
    centered_BD: Tensor
    error_BD: Tensor
    pre_BF: Tensor
    features_BF: Tensor
    product_BD: Tensor


class CompiledStep(Step):
    """Trains TopK or BatchTopK with ``kernels``. ``W_enc`` is stored in memory as its transpose."""

    name = "compiled"
    model: TopKSAE | BatchTopKSAE

    def __init__(self, model: SAE, training: TrainingConfig, kernels: Kernels):
        assert isinstance(model, TopKSAE | BatchTopKSAE)
        super().__init__(model, training)
        self.kernels = kernels
        self.dtype = torch.bfloat16 if training.precision == "bfloat16" else torch.float32
        d_sae, d_in = model.W_dec.shape
        self.dense = model.config.k >= DENSE_FRACTION[self.dtype] * d_sae
        self._copied: list[tuple[int, int]] = []
        self._views: dict[int, Views] = {}
        self._calls: dict[str, tuple[tuple[object, ...], Callable[[], int]]] = {}
        self.adam = Adam(first=BETAS[0], second=BETAS[1], epsilon=EPSILON)
        self.g_both_2FD = torch.empty(2, d_sae, d_in)
        self.g_dec_FD, self.g_enc_FD = self.g_both_2FD
        self.g_bias_F, self.parallel_F = torch.empty(d_sae), torch.empty(d_sae)
        self.g_b_dec_D, self.error_sum_D = torch.empty(d_in), torch.empty(d_in)
        self.square_F = torch.empty(d_sae, dtype=torch.float64)
        self.square_norm, self.loss_sum = torch.empty(2, dtype=torch.float64)
        self.fired_F, self.dead_F = torch.empty(2, d_sae, dtype=torch.bool)
        self.start_F = torch.empty(d_sae + 1, dtype=torch.int64)
        self.rows = self.room = 0

    def dead(self, since_fired_F: Tensor, window: int) -> Tensor | None:
        """See ``Step.dead``; also None when the SAE has no AuxK loss."""
        if not self.model.config.aux_coefficient:
            return None
        count = self._run("mark_dead", since_fired_F, len(since_fired_F), window, self.dead_F)
        return self.dead_F if count else None

    def count_tokens_since_fired(self, since_fired_F: Tensor, rows: int) -> None:
        """See ``Step.count_tokens_since_fired``."""
        self._run("count_tokens_since_fired", self.fired_F, len(since_fired_F), rows, since_fired_F)

    @torch.no_grad()
    def gradients(
        self, x_BD: Tensor, dead_F: Tensor | None, sparsity_fraction: float
    ) -> tuple[float, float]:
        """See ``Step.gradients``."""
        self._lay_out()
        if not self.fine:  # latents that are not selected are never looked at
            return math.nan, math.nan
        views, x_BD = self._buffers_for(len(x_BD)), x_BD.contiguous()
        rows, _, d_in = views.shape
        self._run("center", x_BD, self.mean_D, self.model.b_dec, rows, d_in, self.scale,
                  self.centered_BD)  # fmt: skip
        torch.mm(views.centered_BD, self.W_enc_DF, out=views.pre_BF)
        self._select(views)
        backward = self._dense_backward if self.dense else self._sparse_backward
        loss = backward(x_BD, views, dead_F)
        self._run("bias_gradient", self.error_sum_D, self.g_bias_F, self.square_F, self.W_enc,
                  *views.shape, self.g_b_dec_D, self.square_norm)  # fmt: skip
        square = float(self.square_norm)
        self.norm = math.sqrt(square) if square >= 0 else math.nan
        return loss, self.norm

    @torch.no_grad()
    def update(self, lr: float) -> None:
        """Clip the gradients and make Adam's step; BatchTopK also moves its threshold."""
        model, adam, (d_sae, d_in) = self.model, self.adam, self.g_dec_FD.shape
        self.taken += 1
        steps = int(self.taken)
        adam.rate = lr / (1 - BETAS[0] ** steps)
        adam.clip = min(1.0, self.training.gradient_clip / (self.norm + 1e-6))
        adam.root = 1 / math.sqrt(1 - BETAS[1] ** steps)
        self._run("adam_vectors", adam, d_sae, model.b_enc, self.g_bias_F, *self.moments["b_enc"],
                  d_in, model.b_dec, self.g_b_dec_D, *self.moments["b_dec"])  # fmt: skip
        self._run(
            "adam_rows", adam, d_sae, d_in, self.square_F, self.parallel_F, self.g_dec_FD,
            self.g_enc_FD, model.W_dec, *self.moments["W_dec"], self.weights_FD,
            *self.moments["W_enc"], self.W_dec, self.W_enc,
        )  # fmt: skip
        if isinstance(model, BatchTopKSAE):
            model.move_threshold(self.smallest)

    def release(self) -> None:
        """Free all memory except the model's, this step's buffers included."""
        super().release()
        for name in [
            name for name, value in vars(self).items() if isinstance(value, Tensor | tuple | dict)
        ]:
            delattr(self, name)

    def _run(self, name: str, *arguments: object) -> int:
        """Call a kernel; arguments that are objects of the last call are not converted again."""
        arguments = *arguments, torch.get_num_threads()
        before, call = self._calls.get(name, NO_CALL)
        if len(before) != len(arguments) or not all(map(is_, before, arguments)):
            call = self.kernels.prepared(name, arguments, self.dtype)
            self._calls[name] = arguments, call
        return call()

    def _lay_out(self) -> None:
        """Store weights and moments in the kernels' layout if they are new; copy the operands."""
        model = self.model
        if self._copied == self._versions():
            return
        model.W_enc.data = _transposed(model.W_enc.data)
        self.moments: dict[str, list[Tensor]] = {}
        for name, parameter in model.named_parameters():
            state = self.adam_state[parameter]
            self.taken = state.get("step", torch.zeros(()))
            for moment in MOMENTS:
                found = state.get(moment, torch.zeros_like(parameter))
                state[moment] = _transposed(found) if name == "W_enc" else found.contiguous()
            self.moments[name] = [
                state[moment].T if name == "W_enc" else state[moment] for moment in MOMENTS
            ]
        for parameter in model.parameters():
            self.adam_state[parameter]["step"] = self.taken
        self.weights_FD = model.W_enc.detach().T
        self.W_enc = self.weights_FD.to(self.dtype)
        self.W_enc_DF = self.W_enc.T
        self.W_dec = model.W_dec.detach().to(self.dtype)
        self.fine = all(bool(weight.isfinite().all()) for weight in model.parameters())
        self._calls.clear()
        self._copied = self._versions()

    def _versions(self) -> list[tuple[int, int]]:
        """Values that change when the weights are changed by other code than the kernels."""
        weights = self.model.parameters()
        return [(weight._version, weight.data_ptr()) for weight in weights]

    def _buffers_for(self, rows: int) -> Views:
        """Views of the buffers for a batch of ``rows`` rows; later batches use the same ones."""
        if rows > self.rows:
            self._allocate(rows)
        if rows not in self._views:
            d_sae, d_in = self.model.W_dec.shape
            buffers = (
                self.centered_BD, self.error_BD, self.pre_BF, self.features_BF, self.product_BD
            )  # fmt: skip
            self._views[rows] = Views((rows, d_sae, d_in), *(buffer[:rows] for buffer in buffers))
        return self._views[rows]

    def _allocate(self, rows: int) -> None:
        self.rows = rows
        self._views.clear()
        d_sae, d_in = self.model.W_dec.shape
        self.centered_BD = torch.empty(rows, d_in, dtype=self.dtype)
        self.error_BD = torch.empty(rows, d_in, dtype=self.dtype)
        self.pre_BF = self._preactivation_buffer(rows)
        self.features_BF = torch.empty(rows if self.dense else 0, d_sae, dtype=self.dtype)
        self.product_BD = torch.empty(rows if self.dense else 0, d_in, dtype=self.dtype)
        self.loss_B = torch.empty(rows, dtype=torch.float64)
        self.first_B = torch.zeros(rows + 1, dtype=torch.int64)
        self.last_B = torch.empty(rows, dtype=torch.int64)
        if self.dense:
            shared = self.dtype == self.g_dec_FD.dtype
            self.by_error_FD, self.by_centered_FD = (
                gradient if shared else torch.empty_like(gradient, dtype=self.dtype)
                for gradient in (self.g_dec_FD, self.g_enc_FD)
            )
        whole_batch = isinstance(self.model, BatchTopKSAE)
        self._allocate_entries(rows * self.model.config.k * (2 if whole_batch else 1))

    def _preactivation_buffer(self, rows: int) -> Tensor:
        """The memory of the gradients, which are written only after the pre-activations were used.

        Memory of its own where that is too small, or where whole matrix products need both at once.
        """
        free = self.g_both_2FD.view(self.dtype).flatten()
        wanted = rows * self.g_both_2FD.shape[1]
        if self.dense or wanted > len(free):
            return torch.empty(rows, self.g_both_2FD.shape[1], dtype=self.dtype)
        return free[:wanted].view(rows, -1)

    def _allocate_entries(self, entries: int) -> None:
        self.room = min(entries, self.pre_BF.numel())
        self.value_N, self.dz_N = torch.empty(self.room), torch.empty(self.room)
        self.column_N = torch.empty(self.room, dtype=torch.int32)
        if not self.dense:  # the same entries, in the order of the latents
            self.sorted_N = self.value_N.clone(), self.dz_N.clone()
            self.row_N = self.column_N.clone()

    def _select(self, views: Views) -> None:
        """Fill ``value_N``, ``column_N``; row b has the entries ``first_B[b]`` to ``last_B[b]``."""
        model, (rows, d_sae, _) = self.model, views.shape
        if isinstance(model, TopKSAE):
            self._run("select_rows", self.pre_BF, model.b_enc, rows, d_sae, model.config.k,
                      self.value_N, self.column_N, self.first_B, self.last_B)  # fmt: skip
            return
        while True:
            count = self._run(
                "select_batch", self.pre_BF, model.b_enc, rows, d_sae, rows * model.config.k,
                self.room, self.value_N, self.column_N, self.first_B,
            )  # fmt: skip
            if count >= 0:
                break
            self._allocate_entries(views.pre_BF.numel())
        self.last_B[:rows] = self.first_B[1 : rows + 1]
        self.smallest = self.value_N[:count].min() if count else torch.tensor(torch.inf)

    def _sparse_backward(self, x_BD: Tensor, views: Views, dead_F: Tensor | None) -> float:
        rows, d_sae, d_in = views.shape
        entries = self.value_N, self.column_N, self.first_B, self.last_B
        self._run("decode_rows", x_BD, self.mean_D, self.W_dec, self.model.b_dec, *entries, rows,
                  d_in, self.scale, self.error_BD, self.dz_N, self.loss_B, self.loss_sum)  # fmt: skip
        aux, extra = self._aux_k(views, dead_F)
        self._run("by_latent", self.value_N, self.column_N, self.dz_N, self.first_B, self.last_B,
                  rows, d_sae, self.start_F, self.row_N, *self.sorted_N, self.fired_F)  # fmt: skip
        self._run("gradients", self.start_F, self.row_N, *self.sorted_N, self.error_BD,
                  self.centered_BD, *(extra or NO_EXTRA), *views.shape, self.g_dec_FD,
                  self.g_enc_FD, self.g_bias_F, self.parallel_F, self.square_F)  # fmt: skip
        return float(self.loss_sum) / rows + aux

    def _dense_backward(self, x_BD: Tensor, views: Views, dead_F: Tensor | None) -> float:
        rows, d_sae, d_in = views.shape
        self._run("scatter_rows", self.value_N, self.column_N, self.first_B, self.last_B, rows, d_sae,
                  self.features_BF)  # fmt: skip
        torch.mm(views.features_BF, self.W_dec, out=views.product_BD)
        self._run("errors", x_BD, self.mean_D, self.product_BD, self.model.b_dec, rows, d_in, self.scale,
                  self.error_BD, self.loss_B, self.loss_sum)  # fmt: skip
        aux, extra = self._aux_k(views, dead_F)
        dz_BF = views.pre_BF  # the pre-activations are no longer needed
        torch.mm(views.error_BD, self.W_dec.T, out=dz_BF)
        self._run("mask_gradient", self.features_BF, self.pre_BF, rows, d_sae, self.g_bias_F,
                  self.parallel_F, self.square_F, self.fired_F)  # fmt: skip
        torch.mm(views.features_BF.T, views.error_BD, out=self.by_error_FD)
        torch.mm(dz_BF.T, views.centered_BD, out=self.by_centered_FD)
        self._run("dense_gradients", self.by_error_FD, self.by_centered_FD, *(extra or NO_EXTRA),
                  *views.shape, self.g_dec_FD, self.g_enc_FD, self.g_bias_F, self.parallel_F,
                  self.square_F)  # fmt: skip
        return float(self.loss_sum) / rows + aux

    def _aux_k(self, views: Views, dead_F: Tensor | None) -> tuple[float, Extra | None]:
        """The weighted AuxK loss and its gradients; see ``KSAE._aux_k``."""
        (rows, _, d_in), error_BD = views.shape, views.error_BD
        self._run("column_sums", self.error_BD, rows, d_in, self.error_sum_D)
        if dead_F is None or not self.model.config.aux_coefficient or not bool(dead_F.any()):
            return 0.0, None
        mean_square = float((self.error_sum_D / rows).square().sum())
        variance = float(self.loss_sum) / rows - mean_square
        weight = self.model.config.aux_coefficient * d_in / max(variance, 1e-12)
        dead_C = dead_F.nonzero().squeeze(1)
        features_BC = self._aux_features(rows, dead_C)
        W_dec_CD = self.W_dec[dead_C]
        back_BD, loss_B = torch.empty_like(error_BD), torch.empty(rows, dtype=torch.float64)
        self._run("aux_errors", error_BD, features_BC @ W_dec_CD, rows, d_in, -2 * weight / rows,
                  back_BD, loss_B)  # fmt: skip
        dz_BC = (back_BD @ W_dec_CD.T).mul_(features_BC > 0)
        dec_CD = (features_BC.T @ back_BD).float()
        bias_C = torch.empty(len(dead_C))
        self._run("column_sums", dz_BC, rows, len(dead_C), bias_C)
        slot_F = torch.full(dead_F.shape, -1, dtype=torch.int32)
        slot_F[dead_C] = torch.arange(len(dead_C), dtype=torch.int32)
        enc_CD = (dz_BC.T @ views.centered_BD).float()
        parallel_C = (dec_CD * self.model.W_dec.detach()[dead_C]).sum(dim=1)
        extra = Extra(slot_F, dec_CD, enc_CD, bias_C, parallel_C)
        return weight * float(loss_B.sum()) / rows, extra

    def _aux_features(self, rows: int, dead_C: Tensor) -> Tensor:
        """Features ``[batch, dead]`` of dead latents: the ``d_in / 2`` largest of each row."""
        dead, k = len(dead_C), max(self.model.d_in // 2, 1)
        features_BC = torch.empty(rows, dead, dtype=self.dtype)
        self._run("active_columns", self.pre_BF, self.model.b_enc.detach()[dead_C], dead_C, rows,
                  self.pre_BF.shape[1], dead, features_BC)  # fmt: skip
        if k >= dead:
            return features_BC
        value_N, column_N = torch.empty(rows * k), torch.empty(rows * k, dtype=torch.int32)
        first_B, last_B = torch.empty(2, rows, dtype=torch.int64)
        self._run("select_rows", features_BC, torch.zeros(dead), rows, dead, k, value_N, column_N,
                  first_B, last_B)  # fmt: skip
        self._run("scatter_rows", value_N, column_N, first_B, last_B, rows, dead, features_BC)
        return features_BC


def _transposed(matrix: Tensor) -> Tensor:
    """The same matrix, stored column by column."""
    return matrix.T.contiguous().T
