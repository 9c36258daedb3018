"""The training loop of one SAE, which a notebook, a trial and an ensemble use alike.

Shapes: B batch, D d_in, F d_sae.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from raysae.sae import SAE, SAEConfig, build_sae
from raysae.sae.dictionary import decoder_statistics
from raysae.sae.indicators import mean_abs_cosine, nth_projection
from raysae.sae.metrics import ReconstructionSums, evaluate
from raysae.sae.truth import Truth, truth_metrics
from raysae.training.compiled import step_of
from raysae.training.config import TrainingConfig
from raysae.training.feeding import Feed
from raysae.training.finite import NonFiniteLossError
from raysae.training.initialisation import shrink_encoder
from raysae.training.memory import give_back, require_room, training_bytes
from raysae.training.rows import EVALUATION_BATCH, IndexedRows, RowSource, Stream, same_d_in
from raysae.training.statistics import InputStatistics, input_statistics

EVALUATION_LATENTS = 2**18
"""The most feature values in memory at a time during an evaluation."""


def evaluation_rows(d_sae: int, least: int) -> int:
    """Rows in a batch of an evaluation: at least ``least``, on a GPU as many as train together."""
    return min(EVALUATION_BATCH, max(EVALUATION_LATENTS // d_sae, least))


class Trainer:
    """Trains one SAE on ``train`` and evaluates it on ``validation``, both ``[rows, d_in]``.

    ``truth`` is what is known of synthetic rows. ``statistics`` are those of
    these rows, when the caller knows them already. Iterate ``rounds()``; ``sae()`` and
    ``metrics()`` give the current SAE and its metrics at any time. The result depends on the
    arguments alone: on a CPU, with the same number of threads, it is equal to the bit.

    Raises ValueError when the rows have a different d_in or the device has too little free memory.
    """

    def __init__(
        self,
        sae_config: SAEConfig,
        training: TrainingConfig,
        train: RowSource,
        validation: IndexedRows,
        *,
        seed: int = 0,
        device: str = "cpu",
        truth: Truth | None = None,
        statistics: InputStatistics | None = None,
    ):
        same_d_in(train, validation)
        self.training, self.seed, self.device, self.truth = training, seed, device, truth
        self.validation = validation.to(device)
        self.statistics = statistics or input_statistics(
            train.to(device), self.validation, seed, training
        )
        self.train = self.statistics.rows.to(device)
        self._bytes = training_bytes(train.d_in, sae_config.d_sae, training)
        self._released = False
        self.give_back()
        self.stream = Stream(
            self.train, seed=seed, epochs=training.passes(len(self.train)),
            batch_size=training.batch_size, shuffle_rows=training.shuffle_rows,
        )  # fmt: skip
        require_room(sae_config, train.d_in, training, device)
        self.model = build_sae(sae_config, train.d_in, seed).to(device)
        shrink_encoder(self.model)
        self.model.W_dec.requires_grad_(training.frozen != "decoder")
        self._step = step_of(self.model, training, device)
        self.trained_by = self._step.name
        self.read_as(self.statistics.mean_D, self.statistics.scale)
        median_D = (self.statistics.sinks.centre_D - self.statistics.mean_D) * self.scale
        self.model.b_dec.data = median_D.to(self.model.b_dec)
        self.adam_state = self._step.adam_state
        self.feed = Feed(self.stream, device)
        self.steps = training.steps(len(self.train))
        self._stops = self._evaluation_steps()
        self.step = self.tokens = 0
        self.seconds = 0.0
        """Seconds spent on steps; ``feed.waited`` are those spent waiting for data."""
        self.loss = math.nan
        self.tokens_since_fired_F = torch.zeros(sae_config.d_sae, dtype=torch.int64, device=device)
        """Training tokens since each latent last fired."""
        self._evaluation: tuple[int, ReconstructionSums] | None = None
        self._dictionary: tuple[int, dict[str, float]] | None = None

    def read_as(self, mean_D: Tensor, scale: float) -> None:
        """Train the SAE on ``scale * (x - mean_D)``; the SAE of ``sae()`` reads ``x`` itself."""
        self.scale = self._step.scale = scale
        self.mean_D = self._step.mean_D = mean_D.to(self.model.b_dec)

    @property
    def tokens_per_second(self) -> float:
        """Training tokens per second of training and of waiting for data, without evaluations."""
        return self.tokens / max(self.seconds + self.feed.waited, 1e-9)

    @property
    def dead_window(self) -> int:
        """Tokens without firing after which a latent is dead."""
        return min(self.training.dead_window_tokens, self.all_tokens)

    @property
    def aux_window(self) -> int:
        """Tokens without firing after which AuxK tries to revive a latent."""
        if self.training.aux_window_tokens is not None:
            return self.training.aux_window_tokens
        a_few_batches = 4 * min(self.training.batch_size, len(self.train))
        return max(self.all_tokens // 1000, a_few_batches)

    def rounds(self, on_step: Callable[[int], None] | None = None) -> Iterator[dict[str, Any]]:
        """Train to the end and yield a record at each evaluation: step, tokens, loss, metrics.

        ``on_step`` is called after each step with its number of tokens. Raises NonFiniteLossError
        before an update that would make the weights NaN or infinite.
        """
        if self.step == self.steps:
            return
        for batch_BD in self.feed:
            record = self.take(batch_BD)
            if on_step is not None:
                on_step(len(batch_BD))
            if record is not None:
                yield record
            if self.step == self.steps:
                return
        if self.step < self.steps:  # the rows ended early
            yield self.end()

    def take(self, batch_BD: Tensor) -> dict[str, Any] | None:
        """Train on ``batch_BD``, the next of the feed; returns a record when an evaluation is due.

        Raises NonFiniteLossError as ``rounds`` does.
        """
        started = time.perf_counter()
        self._update(batch_BD.to(self.device, torch.float32))
        self.seconds += time.perf_counter() - started
        return self.record() if self.at_evaluation() else None

    def at_evaluation(self) -> bool:
        """Whether an evaluation follows this step."""
        return self.step in self._stops

    def follow(self, other: "Trainer") -> None:
        """Read batches from ``other``'s feed from now on; both count the waiting for it.

        ``other`` must train on the same rows in the same order and be at the same step.
        """
        self.stream, self.feed = other.stream, other.feed

    def end(self) -> dict[str, Any]:
        """Make this step the last one; returns its record."""
        self.steps = self.step
        return self.record()

    def release(self) -> None:
        """Free the working memory. No step can follow; metrics and the SAE remain available."""
        if self._released:
            return
        self._released = True
        self._step.release()
        self.give_back()

    def give_back(self) -> None:
        """Give memory that other work has freed back to the system."""
        give_back(self._bytes)

    def sae(self) -> SAE:
        """The current SAE on the CPU; it reads activations as they are, not centred or scaled."""
        frozen = copy.deepcopy(self.model).cpu().eval().requires_grad_(False)
        frozen.W_enc.data = frozen.W_enc.data.contiguous()
        frozen.metadata = {"training": self._described()}
        return frozen.fold_scale(self.scale).fold_mean(self.mean_D.cpu())

    def metrics(self) -> dict[str, Any]:
        """Validation metrics of the current SAE, its dead fractions with their windows in tokens,
        and the estimated memory of its training in bytes.

        When no latent fires on the validation rows, the SAE is ``degenerate`` and its explained
        variance is undefined (NaN).
        """
        sums = self._evaluated()
        metrics = sums.metrics()
        degenerate = metrics["l0"] == 0
        if degenerate:
            metrics |= {"explained_variance": math.nan, "fvu": math.nan}
            metrics["explained_variance_legacy"] = math.nan
            metrics["explained_variance_ordinary"] = math.nan
        return {
            **metrics,
            "degenerate": degenerate,
            "dead_fraction": float((self.tokens_since_fired_F >= self.dead_window).double().mean()),
            "dead_window_tokens": self.dead_window,
            "dead_fraction_validation": sums.dead_fraction(),
            "dead_validation_tokens": sums.rows,
            "mean_ratio": self.statistics.health.mean_ratio,
            "training_bytes": self._bytes,
        }

    def final_metrics(self) -> dict[str, Any]:
        """``metrics()``, the similarity of the decoder's rows to each other, the indicators of
        ``raysae.sae.indicators``, and, when the true atoms are known, the metrics of those."""
        halves = {"explained_variance_halves": self._evaluated().halves_differ()}
        return {**self.metrics(), **halves, **self._compared()}

    def _compared(self) -> dict[str, float]:
        """The metrics of the decoder's rows at this step, computed once."""
        if self._dictionary is None or self._dictionary[0] != self.step:
            W_dec_FD = self.model.W_dec.detach()
            found = decoder_statistics(W_dec_FD) | self._indicators()
            if self.truth is not None:
                found |= truth_metrics(
                    self.truth, W_dec_FD, lambda rows_BD: self._reconstruct(rows_BD)[1]
                )
            self._dictionary = self.step, found
        return self._dictionary[1]

    def _indicators(self) -> dict[str, float]:
        live_FD = self.live_decoder()
        inputs = ((x_BD - self.mean_D) * self.scale for x_BD in self._validation_batches())
        projection = nth_projection(live_FD, inputs)
        return {
            "decoder_cosine_mean_abs": mean_abs_cosine(live_FD),
            "decoder_projection": projection.mean,
            "decoder_projection_halves": projection.difference,
        }

    def live_decoder(self) -> Tensor:
        """The decoder rows ``[live, d_in]`` of the latents that fire on the validation rows."""
        fired_F = self._evaluated().fired_F
        assert fired_F is not None
        return self.model.W_dec.detach()[fired_F > 0]

    def density_histogram(self) -> dict[str, list[float]]:
        """Histogram of how often live latents fire on the validation rows."""
        return self._evaluated().density_histogram()

    @property
    def all_tokens(self) -> int:
        """Training tokens of the whole run."""
        return self.training.training_tokens(len(self.train))

    def _described(self) -> dict[str, Any]:
        """The training's settings and progress, for the SAE's ``cfg.json``."""
        return {
            **asdict(self.training),
            "lr": self.training.peak_lr(self.model.config.d_sae),
            "seed": self.seed,
            "steps": self.step,
            "tokens": self.tokens,
            "input_scale": self.scale,
            "input_mean_norm": float(self.mean_D.double().norm()),
            "input_health": asdict(self.statistics.health),
            "trained_by": self.trained_by,
        }

    def record(self) -> dict[str, Any]:
        """The current step, tokens, loss and metrics."""
        counts = {"step": self.step, "tokens": self.tokens, "loss": self.loss}
        return {**counts, **self.metrics()}

    def _evaluated(self) -> ReconstructionSums:
        """The sums over the validation rows at this step, computed once."""
        if self._evaluation is None or self._evaluation[0] != self.step:
            mean_D = self.statistics.validation_mean_D.to(self.device)
            batches, sinks = self._validation_batches(), self.statistics.sinks
            self._evaluation = self.step, evaluate(self._reconstruct, batches, mean_D, sinks)
        return self._evaluation[1]

    def _reconstruct(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """``sae().reconstruct(x_BD)`` up to rounding, without a copy of the weights."""
        inputs_BD = (x_BD - self.mean_D) * self.scale
        reconstruction_BD, features_BF = self.model.reconstruct(inputs_BD)
        return reconstruction_BD / self.scale + self.mean_D, features_BF

    def _validation_batches(self) -> Iterator[Tensor]:
        least = self.training.batch_size if torch.device(self.device).type == "cuda" else 64
        rows = evaluation_rows(self.model.config.d_sae, least)
        return (batch_BD.to(self.device).float() for batch_BD in self.validation.batches(rows))

    def _update(self, x_BD: Tensor) -> None:
        dead_F = self._step.dead(self.tokens_since_fired_F, self.aux_window)
        fraction = self.training.sparsity_fraction(self.step, self.steps)
        self.loss, norm = self._step.gradients(x_BD, dead_F, fraction)
        self._stop_unless_finite("loss", self.loss, x_BD)
        self._stop_unless_finite("gradient norm", norm, x_BD)
        peak = self.training.peak_lr(self.model.config.d_sae)
        self._step.update(peak * self.training.lr_fraction(self.step, self.steps))
        self._step.count_tokens_since_fired(self.tokens_since_fired_F, len(x_BD))
        self.count(len(x_BD))

    def _stop_unless_finite(self, what: str, value: float, x_BD: Tensor) -> None:
        if math.isfinite(value):
            return
        raise NonFiniteLossError(f"{what} {value} {self.where_and_what_to_do(x_BD)}")

    def where_and_what_to_do(self, x_BD: Tensor | None = None) -> str:
        """For errors: the next step, and a hint why the loss on ``x_BD`` is not finite."""
        peak = self.training.peak_lr(self.model.config.d_sae)
        hint = f"a lower lr (now up to {peak:.2g}) usually helps"
        if x_BD is not None and not x_BD.isfinite().all():
            hint = "the rows themselves hold NaN or infinite values; verify the store"
        return f"at step {self.step + 1} of {self.steps}; {hint}"

    def count(self, rows: int) -> None:
        """Count a step over ``rows`` rows."""
        self.step += 1
        self.tokens += rows

    def _evaluation_steps(self) -> set[int]:
        wanted = min(self.training.evaluations, self.steps)
        return {round(self.steps * (number + 1) / wanted) for number in range(wanted)}
