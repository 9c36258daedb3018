"""The configuration of one SAE: frozen dataclasses, which work without pydantic and without torch.

The recipe (``raysae.config``) nests them; pydantic reads ``__pydantic_config__`` and the docstrings
of the fields. The file named after a variant shows how the variant uses its settings.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from numbers import Real
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

LARGEST = 2**63 - 1
"""The largest whole number."""
INFINITE = (math.inf, -math.inf)


def setting(default: Any, meaning: str) -> Any:
    """A field whose ``meaning`` subclasses inherit; pydantic ignores docstrings of parents."""
    return field(default=default, metadata={"description": meaning})


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """The settings of every variant. Raises ValueError on values that no SAE can have."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "use_attribute_docstrings": True}
    sparsity_key: ClassVar[str]
    """The name of the field that controls how sparse the features are."""

    variant: str
    """The SAE variant."""
    d_sae: int = setting(512, "Dictionary size: the number of latents.")

    def __post_init__(self) -> None:
        check_types(self)
        if self.d_sae < 1:
            raise ValueError(f"d_sae is {self.d_sae}; a dictionary holds at least 1 latent")


def check_types(config: Any) -> None:
    """Check that each field of a dataclass has a value of its type; numpy's numbers become Python's.

    Raises ValueError that names the first field that has not, with what is expected.
    """
    for one in fields(config):
        value = getattr(config, one.name)
        object.__setattr__(config, one.name, _typed(one.name, value, one.type))


def _typed(name: str, value: Any, kind: Any) -> Any:
    """``value``, if it is of the annotated type ``kind``; numbers as ``int`` or ``float``."""
    kinds = get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)
    if value is None and NoneType in kinds:
        return None
    plain = next(one for one in kinds if one is not NoneType)
    or_null = ", or null" if NoneType in kinds else ""
    if get_origin(plain) is Literal:
        if value not in get_args(plain):
            known = " or ".join(get_args(plain))
            raise ValueError(f"{name} is {value!r}; it is {known}{or_null}")
    elif get_origin(plain) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} is {value!r}; it must be a list of numbers{or_null}")
        return tuple(_typed(f"{name}[{n}]", one, float) for n, one in enumerate(value))
    elif plain in (int, float):
        return _number(name, value, plain, or_null)
    elif not isinstance(value, plain):
        words = "true or false" if plain is bool else "text"
        raise ValueError(f"{name} is {value!r}; it must be {words}{or_null}")
    return value


def _number(name: str, value: Any, kind: type, or_null: str) -> Any:
    words = "a whole number" if kind is int else "a number"
    number = isinstance(value, Real) and not isinstance(value, bool) and not _is_nan(value)
    if not number or (kind is int and (value in INFINITE or value != int(value))):
        raise ValueError(f"{name} is {value!r}; it must be {words}{or_null}")
    if kind is int and abs(value) > LARGEST:
        raise ValueError(f"{name} is larger than {LARGEST}; it must be a smaller number")
    try:
        return int(value) if kind is int else float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large a number; it must be {words}{or_null}") from None


def _is_nan(value: Any) -> bool:
    """Whether a number is none."""
    return bool(value != value)


def known_keys(argument: str, what: str, settings: Any, config: type) -> None:
    """Check that ``settings`` are a mapping with keys of the dataclass ``config`` alone.

    Raises ValueError that names the ``argument``, or the first unknown key with the nearest one.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"{argument} is {settings!r}; it must be settings by name, such as a dict, or a "
            f"{config.__name__}"
        )
    known = [one.name for one in fields(config)]
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}" if close else ""
            raise ValueError(f"{what} has no setting {key!r}{hint}; it has {', '.join(known)}")


def refuse_negative(config: SAEConfig, *names: str) -> None:
    """Raise ValueError when one of the fields is negative or not finite."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class KConfig(SAEConfig):
    """The settings of all variants that select by rank."""

    sparsity_key: ClassVar[str] = "k"

    k: int = setting(32, "Active latents a row: at most in topk, else on average over a batch.")
    aux_coefficient: float = setting(
        1 / 32, "Weight of the AuxK loss, which revives dead latents (0 turns it off)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k is {self.k}; at least 1 latent must be active a row")
        if self.k > self.d_sae:
            raise ValueError(
                f"k is {self.k}, above d_sae {self.d_sae}: no row can have more active latents "
                "than the dictionary holds; lower k or raise d_sae"
            )
        refuse_negative(self, "aux_coefficient")


@dataclass(frozen=True, kw_only=True)
class TopKConfig(KConfig):
    """TopK: exactly k latents a row are selected."""

    variant: Literal["topk"] = "topk"
    """The k largest pre-activations of each row."""


@dataclass(frozen=True, kw_only=True)
class BatchKConfig(KConfig):
    """The settings of the variants that select over a batch."""

    threshold_rate: float = setting(
        0.2, "Weight of the newest batch in the moving average of the inference threshold."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold_rate <= 1:
            raise ValueError(
                f"threshold_rate is {self.threshold_rate}; it must be above 0 and at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(BatchKConfig):
    """BatchTopK: k latents a row on average over the batch."""

    variant: Literal["batch_topk"] = "batch_topk"
    """The k·B largest activations of each batch of B rows."""


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchKConfig):
    """Matryoshka BatchTopK: nested dictionaries in one."""

    variant: Literal["matryoshka"] = "matryoshka"
    """BatchTopK in which every prefix of the dictionary also reconstructs without the rest."""
    prefixes: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)
    """Sizes of the nested dictionaries, as rising fractions of d_sae; the last is 1."""
    prefix_weights: tuple[float, ...] | None = None
    """Weight of each prefix's loss, scaled to a sum of 1; null gives equal weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "prefixes", tuple(self.prefixes))
        rising = all(low < high for low, high in pairwise(self.prefixes))
        if not self.prefixes or self.prefixes[0] <= 0 or self.prefixes[-1] != 1 or not rising:
            raise ValueError(
                f"prefixes are {list(self.prefixes)}; they must rise from above 0 to 1, as "
                "fractions of d_sae"
            )
        if self.prefix_weights is not None:
            object.__setattr__(self, "prefix_weights", tuple(self.prefix_weights))
            self._check_weights(self.prefix_weights)

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        good = all(math.isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
        if len(weights) != len(self.prefixes) or not good:
            raise ValueError(
                f"prefix_weights are {list(weights)}; give one for each of the "
                f"{len(self.prefixes)} prefixes, none negative and not all 0"
            )

    @property
    def widths(self) -> list[int]:
        """Number of latents in each prefix; prefixes that round to the same number are one."""
        return sorted({max(round(prefix * self.d_sae), 1) for prefix in self.prefixes})

    @property
    def width_weights(self) -> list[float]:
        """The weight of each of ``widths``, with a sum of 1."""
        given = self.prefix_weights or (1.0,) * len(self.prefixes)
        by_width = dict.fromkeys(self.widths, 0.0)
        for prefix, weight in zip(self.prefixes, given, strict=True):
            by_width[max(round(prefix * self.d_sae), 1)] += weight
        return [weight / sum(given) for weight in by_width.values()]


@dataclass(frozen=True, kw_only=True)
class HierarchicalTopKConfig(KConfig):
    """HierarchicalTopK: one dictionary for every K up to k."""

    variant: Literal["hierarchical_topk"] = "hierarchical_topk"
    """The k largest pre-activations of each row, of which the first few also reconstruct alone."""
    levels: tuple[float, ...] | None = None
    """The K at which the most active latents reconstruct alone, beside k itself: rising whole numbers
    below k; null gives the powers of two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels is None:
            return
        object.__setattr__(self, "levels", tuple(self.levels))
        whole = all(level == int(level) and level >= 1 for level in self.levels)
        rising = all(low < high for low, high in pairwise((*self.levels, self.k + 1)))
        if not whole or not rising:
            raise ValueError(
                f"levels are {list(self.levels)}; they must be rising whole numbers from 1 to k, which "
                f"is {self.k}"
            )

    @property
    def ends(self) -> list[int]:
        """The K of each level, rising; the last is k."""
        powers = (2**n for n in range(self.k.bit_length()))
        given = powers if self.levels is None else map(int, self.levels)
        return sorted({*given, self.k})


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SAEConfig):
    """JumpReLU: a learned threshold for each latent."""

    sparsity_key: ClassVar[str] = "l0_coefficient"

    variant: Literal["jumprelu"] = "jumprelu"
    """Pre-activations above a learned threshold, with an L0 penalty."""
    l0_coefficient: float = 1.0
    """Weight of the mean L0 in the loss, whose inputs are centred, with mean square norm d_in."""
    bandwidth: float = 0.05
    """Width of the window around a threshold in which pre-activations give it a gradient; the
    pre-activations of latents unrelated to a row have a spread of about 1."""
    initial_threshold: float = 0.1
    """Initial value of the thresholds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative(self, "l0_coefficient", "initial_threshold")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth is {self.bandwidth}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class GatedConfig(SAEConfig):
    """Gated: only the gate is penalised, so that the penalty does not shrink the magnitudes."""

    sparsity_key: ClassVar[str] = "l1_coefficient"

    variant: Literal["gated"] = "gated"
    """A gate that is penalised, and magnitudes that are not."""
    l1_coefficient: float = 1.0
    """Weight of the L1 penalty in the loss, whose inputs are centred, with mean square norm d_in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative(self, "l1_coefficient")


@dataclass(frozen=True, kw_only=True)
class ReLUL1Config(SAEConfig):
    """ReLU with an L1 penalty."""

    sparsity_key: ClassVar[str] = "l1_coefficient"

    variant: Literal["relu_l1"] = "relu_l1"
    """ReLU with an L1 penalty."""
    l1_coefficient: float = 1.0
    """Weight of the L1 penalty in the loss, whose inputs are centred, with mean square norm d_in."""
    decorrelation_coefficient: float = 0.0
    """Weight of the mean squared cosine between decoder rows in the loss (0 turns it off)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_negative(self, "l1_coefficient", "decorrelation_coefficient")


CONFIGS: dict[str, type[SAEConfig]] = {
    "topk": TopKConfig,
    "batch_topk": BatchTopKConfig,
    "matryoshka": MatryoshkaConfig,
    "hierarchical_topk": HierarchicalTopKConfig,
    "jumprelu": JumpReLUConfig,
    "gated": GatedConfig,
    "relu_l1": ReLUL1Config,
}
"""The settings of each variant, by the variant's name."""
DEFAULT_VARIANT = "topk"


def sae_config(settings: SAEConfig | Mapping[str, Any]) -> SAEConfig:
    """The config of the variant that ``settings`` names (TopK when it names none).

    Raises ValueError on an unknown variant, a key that the variant does not have, or a value that
    no SAE can have.
    """
    if isinstance(settings, SAEConfig):
        return settings
    if not isinstance(settings, Mapping):
        known_keys("sae_config", "an SAE", settings, SAEConfig)
    variant = settings.get("variant", DEFAULT_VARIANT)
    if not isinstance(variant, str) or variant not in CONFIGS:
        raise ValueError(f"variant is {variant!r}; known are {', '.join(CONFIGS)}")
    known_keys("sae_config", variant, settings, CONFIGS[variant])
    return CONFIGS[variant](**settings)
