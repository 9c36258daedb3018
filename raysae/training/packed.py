"""The step of a packed program: N SAEs of one shape are trained by the same GPU kernels.

The mathematics is that of ``ReferenceStep`` with a dimension N in front. No operation in a step
waits for the host, so a step is captured as a CUDA graph and replayed. Where Triton is installed,
TopK's selection and Adam use the kernels in ``raysae.training.gpu``. The step runs on any device,
but on a CPU it is no faster than SAEs trained one by one. Shapes: N SAEs, B batch, D d_in, F d_sae.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from raysae.sae import SAE, SAEConfig
from raysae.sae.batch_topk import BatchTopKSAE
from raysae.sae.config import BatchTopKConfig, TopKConfig
from raysae.training import gpu
from raysae.training.config import TrainingConfig
from raysae.training.step import BETAS, EPSILON

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
AdamState = dict[Tensor, dict[str, Tensor]]
"""Each parameter's moments, under the names that torch's Adam uses."""
EAGER_STEPS = 2
"""Steps of each kind that run without a CUDA graph before one is captured."""


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
        self._captured: dict[tuple[int, bool], tuple[Tensor, Callable[[], None]]] = {}
        self._seen: Counter[tuple[int, bool]] = Counter()

    @torch.no_grad()
    def take(self, x_NBD: Tensor) -> None:
        """Train each SAE on its batch ``[saes, batch, d_in]``, centred and scaled, in float32."""
        dead_NF = self.since_fired_NF >= self.window_N[:, None]
        aux = bool(self.aux_coefficient) and bool(dead_NF.any())
        kind = x_NBD.shape[1], aux
        if x_NBD.is_cuda and self._seen[kind] >= EAGER_STEPS:
            self._replay(kind, x_NBD)
        else:
            self._train(x_NBD, aux)
        self._seen[kind] += 1

    def release(self, number: int) -> None:
        """Stop training SAE ``number``; its tensors no longer change."""
        self.alive_N[number] = False

    def _replay(self, kind: tuple[int, bool], x_NBD: Tensor) -> None:
        """Run the step as a CUDA graph, which the first call for each kind captures."""
        if kind not in self._captured:
            graph, input_NBD = torch.cuda.CUDAGraph(), x_NBD.clone()
            with torch.cuda.graph(graph):
                self._train(input_NBD, kind[1])
            self._captured[kind] = input_NBD, graph.replay
        input_NBD, replay = self._captured[kind]
        input_NBD.copy_(x_NBD)
        replay()

    def _train(self, x_NBD: Tensor, aux: bool) -> None:
        x_NBD = x_NBD.where(self.alive_N[:, None, None], 0.0)
        gradients, loss_N, features_NBF = self._gradients(x_NBD, aux)
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
        counted_NF = torch.where(fired_NF, 0, self.since_fired_NF + x_NBD.shape[1])
        self.since_fired_NF.copy_(
            torch.where(self.alive_N[:, None], counted_NF, self.since_fired_NF)
        )
        if self.threshold_N is not None:
            self._move_threshold(self.threshold_N, features_NBF)
        self.step += 1

    def _gradients(self, x_NBD: Tensor, aux: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        p, rows = self.p, x_NBD.shape[1]
        centered_NBD = x_NBD - p["b_dec"][:, None]
        pre_NBF = self._product(centered_NBD, p["W_enc"]) + p["b_enc"][:, None]
        features_NBF = self._select(pre_NBF)
        error_NBD = self._product(features_NBF, p["W_dec"]) + p["b_dec"][:, None] - x_NBD
        loss_N = error_NBD.square().sum(dim=2).mean(dim=1)
        back_NBD = error_NBD * (2 / rows)
        dz_NBF = self._product(back_NBD, p["W_dec"].mT) * (features_NBF > 0)
        dec_NFD = self._product(features_NBF.mT, back_NBD)
        if aux:
            aux_N, aux_dz_NBF, aux_dec_NFD = self._aux_k(pre_NBF, error_NBD)
            loss_N, dz_NBF, dec_NFD = loss_N + aux_N, dz_NBF + aux_dz_NBF, dec_NFD + aux_dec_NFD
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

    def _select(self, pre_NBF: Tensor) -> Tensor:
        """Features: each SAE's k largest positive values of a row, or k·B of its batch."""
        if not self.whole_batch and gpu.launches(pre_NBF):
            return gpu.select_rows(pre_NBF, self.k_N)
        rows = pre_NBF.shape[1]
        ranked = pre_NBF.flatten(1) if self.whole_batch else pre_NBF
        wanted_N = self.k_N * rows if self.whole_batch else self.k_N
        values, indices = ranked.topk(self.k_max * (rows if self.whole_batch else 1), dim=-1)
        rank = torch.arange(values.shape[-1], device=values.device)
        within = rank < wanted_N.view(-1, *[1] * (values.dim() - 1))
        selected = torch.zeros_like(ranked).scatter(-1, indices, values.relu() * within)
        return selected.view_as(pre_NBF)

    def _aux_k(self, pre_NBF: Tensor, error_NBD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted AuxK loss and its gradients for pre-activations and decoder rows."""
        dead_NF = self.since_fired_NF >= self.window_N[:, None]
        of_dead_NBF = pre_NBF.masked_fill(~dead_NF[:, None], -torch.inf)
        values, indices = of_dead_NBF.topk(self.k_aux, dim=-1, sorted=False)
        features_NBF = torch.zeros_like(pre_NBF).scatter(-1, indices, values.relu())
        residual_NBD = -error_NBD - self._product(features_NBF, self.p["W_dec"])
        spread_N = (error_NBD - error_NBD.mean(dim=1, keepdim=True)).square().sum(dim=2).mean(dim=1)
        weight_N = self.aux_coefficient * error_NBD.shape[2] / spread_N.clamp_min(1e-12)
        weight_N = weight_N * dead_NF.any(dim=1)
        loss_N = weight_N * residual_NBD.square().sum(dim=2).mean(dim=1)
        back_NBD = residual_NBD * (-2 * weight_N / error_NBD.shape[1])[:, None, None]
        dz_NBF = self._product(back_NBD, self.p["W_dec"].mT) * (features_NBF > 0)
        return loss_N, dz_NBF, self._product(features_NBF.mT, back_NBD)

    def _adam(self, gradients: dict[str, Tensor], clip_N: Tensor) -> None:
        """Torch's Adam with a learning rate for each SAE; SAEs that are not alive do not change."""
        ones, done = torch.ones_like(clip_N, dtype=torch.float64), self.step + 1
        correction_N = 1 - torch.pow(ones * BETAS[0], done)
        root_N = (1 - torch.pow(ones * BETAS[1], done)).sqrt().float()
        lr_N = self.lr_SN.index_select(0, self.step.view(1)).squeeze(0)
        rate_N = torch.where(self.alive_N, (lr_N / correction_N).float(), 0.0)
        for name, gradient in gradients.items():
            if gradient.dim() == 3 and gpu.launches(gradient):
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
        if gpu.launches(W_dec_NFD):
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
