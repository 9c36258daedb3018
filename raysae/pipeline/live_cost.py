"""What a store that is written first, live data, and live data that is kept cost: FLOP, hours, disk.

A model's size follows from its config.json alone, so that the cost is known before weights are there.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

from raysae.activations.schema import ITEM_BYTES
from raysae.extraction.plan import HEAD_ROWS, HEAD_SHARE, OTHER_COLUMNS_BYTES
from raysae.transformer.model_spec import ModelSpec

FLOP_PER_PARAMETER = 2
"""Of a forward pass, for each token: a multiplication and an addition."""
TEXT_BYTES = 20
"""Bytes of a token in the files of sequences, about: its id, its place, its part of the text."""


@dataclass(frozen=True)
class ModelSize:
    """Parameters that a forward pass multiplies with; embeddings, which are looked up, do not count."""

    blocks: tuple[int, ...]
    """Parameters of each block."""

    def flop(self, tokens: float, layer: int | None = None) -> float:
        """FLOP of a forward pass over ``tokens`` up to ``layer`` and with it; None is the last."""
        used = self.blocks if layer is None else self.blocks[: layer + 1]
        return FLOP_PER_PARAMETER * float(sum(used)) * tokens


@dataclass(frozen=True)
class Passes:
    """Forward passes over the training texts."""

    sweep: int
    atlas: int

    @property
    def total(self) -> int:
        """Passes of the whole run."""
        return self.sweep + self.atlas


def passes(
    trials: int, at_once: int, epochs: int, atlas_sites: int, sites_per_pass: int, keep: bool
) -> Passes:
    """The forward passes of a live run: one a wave of the sweep and epoch, and one for so many sites of
    the atlas as are trained at once and epoch. With ``keep``, the first one is the only one."""
    if keep:
        return Passes(1, 0) if trials else Passes(0, min(atlas_sites, 1))
    waves = math.ceil(trials / max(at_once, 1))
    groups = math.ceil(atlas_sites / max(sites_per_pass, 1))
    return Passes(waves * epochs, groups * epochs)


@dataclass(frozen=True)
class Texts:
    """The texts of a store, in tokens and rows."""

    tokens: float
    """Tokens of all sequences."""
    rows: float
    """Rows of all positions at one layer, of all splits."""
    positions: int
    training: float
    """The fraction of tokens and rows that is for training."""
    d_in: int
    dtype: str
    layers: int
    """Layers times hookpoints: sites that have rows of the same tokens."""

    @property
    def store_bytes(self) -> float:
        """Bytes of a store that is written first, with its texts."""
        return self._bytes(1.0)

    @property
    def head(self) -> float:
        """The fraction of the rows that a live store has as its head, about."""
        at_a_site = self.rows / self.positions * self.training
        return min(HEAD_SHARE, HEAD_ROWS / max(at_a_site, 1.0)) * self.training

    @property
    def before(self) -> float:
        """The fraction of the rows that a live store computes and writes before training."""
        return 1.0 - self.training + self.head

    @property
    def live_bytes(self) -> float:
        """Bytes of a live store that is not kept."""
        return self._bytes(self.before)

    def _bytes(self, share: float) -> float:
        row = self.d_in * ITEM_BYTES.get(self.dtype, 4) + OTHER_COLUMNS_BYTES
        return share * self.rows * self.layers * row + self.tokens * TEXT_BYTES


@dataclass(frozen=True)
class Layers:
    """The highest layers that a run reads: at the sites of the sweep, of the atlas, and of the store."""

    sweep: int
    atlas: int
    store: int


@dataclass(frozen=True)
class Choice:
    """One way of getting at the activations, and what it costs."""

    name: str
    passes: int
    """Forward passes over the training texts."""
    flop: float
    bytes: float
    """On disk."""

    def line(self, flop_per_second: float | None) -> str:
        """The choice in words; ``flop_per_second`` is that of all workers together, None if not known."""
        hours = "" if flop_per_second is None else f", {_hours(self.flop / flop_per_second)}"
        count = f"{self.passes:,} forward pass{'es' * (self.passes != 1)}"
        return f"{self.name}: {count}, {self.flop:.3g} FLOP{hours}, {_size(self.bytes)} on disk"


def choices(
    model: ModelSize, texts: Texts, layers: Layers, live: Passes, kept: Passes
) -> list[Choice]:
    """What the ways cost: the store first; live, with the passes ``live``; kept, with ``kept``."""
    train = texts.tokens * texts.training
    before = model.flop(texts.tokens * texts.before, layers.store)
    computed = live.sweep * model.flop(train, layers.sweep)
    computed += live.atlas * model.flop(train, layers.atlas)
    keeping = kept.total * model.flop(train, layers.store)
    return [
        Choice("store first", 1, model.flop(texts.tokens), texts.store_bytes),
        Choice("live", live.total, before + computed, texts.live_bytes),
        Choice("live with keep", kept.total, before + keeping, texts.store_bytes),
    ]


def model_size(spec: ModelSpec) -> ModelSize:
    """The size of a model, from its config.json. Raises UserError when it cannot be read."""
    from raysae.transformer.loading import empty_model, load_model_config
    from raysae.transformer.model_config import needed_setting

    config = load_model_config(spec)
    layers = needed_setting(config, "num_hidden_layers", spec.name)
    sizes: dict[str, Counter[int]] = {}
    for name, parameter in empty_model(config, spec).named_parameters():
        found = re.match(r"(.*?)\.(\d+)\.", name)
        if found is not None:
            sizes.setdefault(found[1], Counter())[int(found[2])] += parameter.numel()
    stacks = [stack for stack in sizes.values() if len(stack) == layers]
    blocks = max(stacks, key=lambda stack: stack.total(), default=Counter())
    return ModelSize(tuple(blocks[layer] for layer in range(layers)))


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2g} hours" if seconds >= 360 else f"{seconds:.3g} seconds"


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
