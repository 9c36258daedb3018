"""The settings of one training: a frozen dataclass, nested by the recipe as ``SAEConfig`` is."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from raysae.sae.config import check_types


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings of one training. Raises ValueError on values that cannot train."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "use_attribute_docstrings": True}

    epochs: int = 1
    """Passes over the training rows."""
    tokens: int | None = None
    """Training tokens in whole batches, instead of ``epochs``; null trains for ``epochs``."""
    batch_size: int = 1024
    """Rows per step; an epoch's last batch may be smaller."""
    shuffle_rows: int = 262_144
    """Consecutive rows that are shuffled together; stores are also shuffled when written."""
    lr: float | None = None
    """Adam's peak learning rate; null gives 2e-4 / sqrt(d_sae / 2^14)."""
    warm_up: float = 0.05
    """Fraction of the steps over which the learning rate rises from 0."""
    decay: float = 0.2
    """Fraction of the steps over which the learning rate falls to 0 at the end."""
    sparsity_warm_up: float = 0.05
    """Fraction of the steps over which an L1 or L0 coefficient rises from 0."""
    gradient_clip: float = 0.1
    """Largest norm of the whole gradient. It is small so that the large gradients of the first
    steps do not make Adam's later steps small."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Number format of the matrix products; weights, optimizer and sums stay float32. tf32 is float32
    with products of 10 bits on a GPU that has them, several times as fast; on a CPU it is float32."""
    compiled: bool = True
    """Use compiled kernels where variant and machine support them; false: plain torch."""
    sink_rows: Literal["keep", "leave_out"] = "keep"
    """Whether to train on sink rows, which are over ten times as far from the median as the median
    row, such as attention sinks; leave_out reads all rows once more to find them."""
    frozen: Literal["decoder"] | None = None
    """What stays as it was drawn, for controls: decoder trains encoder and biases under a dictionary
    of random unit vectors; null trains everything."""
    dead_window_tokens: int = 10_000_000
    """A latent is dead when it did not fire in this many training tokens (or the whole run)."""
    aux_window_tokens: int | None = None
    """AuxK revives latents that did not fire in this many tokens; null gives 0.1% of the run, at
    least four batches. It is shorter than ``dead_window_tokens``, which a short run reaches only at
    its end."""
    evaluations: int = 10
    """Number of evaluations on the validation split during training, the last at its end."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "batch_size", "shuffle_rows", "dead_window_tokens", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}; it must be at least 1, or null for epochs")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(
                f"lr is {self.lr}; it must be a positive number, or null for automatic"
            )
        if not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip is {self.gradient_clip}; it must be positive")
        if min(self.warm_up, self.decay) < 0 or self.warm_up + self.decay > 1:
            raise ValueError(
                f"warm_up {self.warm_up} and decay {self.decay} are fractions of the run; "
                "neither can be negative and together they cannot exceed 1"
            )
        if not 0 <= self.sparsity_warm_up <= 1:
            raise ValueError(
                f"sparsity_warm_up is {self.sparsity_warm_up}; it is a fraction of the run, 0 to 1"
            )

    def peak_lr(self, d_sae: int) -> float:
        """``lr``; when it is null, 2e-4 / sqrt(d_sae / 2^14) (rule of Gao et al. 2024)."""
        return self.lr if self.lr is not None else 2e-4 / math.sqrt(d_sae / 2**14)

    def lr_fraction(self, step: int, steps: int) -> float:
        """The fraction of the peak learning rate at ``step`` (0-based) of ``steps``."""
        warm_up_steps, decay_steps = self.warm_up * steps, self.decay * steps
        rising = (step + 1) / warm_up_steps if warm_up_steps else 1.0
        falling = (steps - step) / decay_steps if decay_steps else 1.0
        return min(1.0, rising, falling)

    def sparsity_fraction(self, step: int, steps: int) -> float:
        """The fraction of the sparsity coefficient at ``step`` (0-based) of ``steps``."""
        rising_steps = self.sparsity_warm_up * steps
        return min(1.0, (step + 1) / rising_steps) if rising_steps else 1.0

    def passes(self, rows: int) -> int:
        """Passes over ``rows`` training rows; the last pass may be partial."""
        return self.epochs if self.tokens is None else math.ceil(self.tokens / rows)

    def steps(self, rows: int) -> int:
        """Optimizer steps over ``rows`` training rows."""
        a_pass = math.ceil(rows / self.batch_size)
        if self.tokens is None:
            return self.epochs * a_pass
        whole, rest = divmod(self.tokens, rows)
        return whole * a_pass + math.ceil(rest / self.batch_size)

    def training_tokens(self, rows: int) -> int:
        """Tokens of the whole run over ``rows`` training rows."""
        if self.tokens is None:
            return self.epochs * rows
        whole, rest = divmod(self.tokens, rows)
        return whole * rows + min(math.ceil(rest / self.batch_size) * self.batch_size, rows)
