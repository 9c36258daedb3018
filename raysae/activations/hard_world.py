"""Synthetic activations that are hard for an SAE, as SAELens's SynthSAEBench makes them.

After Chanin and Garriga-Alonso 2026, arXiv 2602.14687: atoms fire at Zipfian rates, in families (a
child only with its parent, siblings that exclude each other), together (a Gaussian copula of low
rank), with a magnitude that varies; a bias, noise and attention sinks are added.

Shapes: N rows, G atoms, D d_in, R rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.atoms import near_orthogonal, unit_rows

Floats = NDArray[np.float32]
ATOMS_STREAM, ROWS_STREAM, SAMPLE_STREAM, SHAPE_STREAM = 0, 1, 2, 3
"""Separate random streams: of the atoms, the rows, the sample beside the store, and all else."""
VALUES_AT_ONCE = 2**23
LEAST_OWN = 0.01
"""The least part of an atom's variance in the copula that it shares with no other."""


@dataclass(frozen=True)
class HardWorld:
    """``atoms`` unit vectors in ``d_in`` dimensions. Raises ValueError on a value out of range.

    Atom i of G has the rate ``min_rate + (max_rate - min_rate) z``, where z falls with ``(i + 1) **
    -rate_exponent`` from 1 to 0. A child's rate is met as far as its parent's allows.
    """

    d_in: int = 64
    atoms: int = 128
    seed: int = 0
    rate_exponent: float = 0.5
    """Exponent of Zipf's law of the rates."""
    max_rate: float = 0.35
    """Share of rows in which the most frequent atom fires."""
    min_rate: float = 0.01
    """Share of rows in which the rarest atom fires."""
    roots: int = 0
    """Atoms, the most frequent ones, that have children; 0: there are no families."""
    children: int = 4
    """Children of each parent."""
    depth: int = 1
    """Generations below the roots."""
    exclusive: float = 0.5
    """Share of parents of whose children at most one fires in a row."""
    scaled: bool = True
    """Whether a child's magnitude is scaled by that of its parent."""
    correlation_rank: int = 0
    """Hidden factors that make atoms fire together; 0: they are independent."""
    correlation_scale: float = 0.1
    """Standard deviation of an atom's weight on each factor."""
    magnitude: float = 1.0
    """Mean magnitude of the most frequent atom."""
    rare_magnitude: float | None = None
    """Mean magnitude of the rarest atom; between, it changes linearly. None: the same."""
    spread: float = 0.15
    """Standard deviation of an atom's magnitude."""
    spread_varies: float = 0.0
    """Standard deviation of that from atom to atom (folded normal)."""
    bias: float = 0.0
    """Norm of a vector that is added to every row."""
    near_orthogonal: bool = False
    """Whether atoms are as orthogonal as they can be; else they are random."""
    noise: float = 0.0
    """Root mean square norm of Gaussian noise that is added to every row."""
    sinks: float = 0.0
    """Share of rows that are attention sinks: one more vector is added to them."""
    sink_norm: float = 100.0
    """Norm of that vector."""

    def __post_init__(self) -> None:
        for field in fields(self):
            problem = _problem(field.name, getattr(self, field.name))
            if problem:
                raise ValueError(f"{field.name} {getattr(self, field.name)}: expected {problem}")
        if self.min_rate > self.max_rate:
            raise ValueError(f"min_rate {self.min_rate} is above max_rate {self.max_rate}")
        if self.families and self.families[-1][1] >= self.atoms:
            raise ValueError(
                f"roots {self.roots} with {self.children} children over {self.depth} generations "
                f"need {self.families[-1][1] + 1} atoms; there are {self.atoms}"
            )

    @cached_property
    def families(self) -> list[tuple[int, int]]:
        """Each parent with the last of its ``children`` atoms, which follow one another."""
        found, parents, following = [], range(self.roots), self.roots
        for _ in range(self.depth if self.roots else 0):
            first = following
            for parent in parents:
                following += self.children
                found.append((parent, following - 1))
            parents = range(first, following)
        return found

    @cached_property
    def exclusive_parents(self) -> list[int]:
        """The parents of whose children at most one fires, in order."""
        parents = [parent for parent, _ in self.families] if self.children > 1 else []
        count = int(len(parents) * self.exclusive)
        chosen = self._random(SHAPE_STREAM, 0).permutation(len(parents))[:count]
        return sorted(parents[at] for at in chosen)

    @cached_property
    def parent_of(self) -> NDArray[np.int64]:
        """The parent of each atom, -1 without one: ``[atoms]``."""
        parent_G = np.full(self.atoms, -1)
        for parent, last in self.families:
            parent_G[last - self.children + 1 : last + 1] = parent
        return parent_G

    @cached_property
    def rates(self) -> NDArray[np.float64]:
        """The share of rows in which each atom is to fire: ``[atoms]``."""
        law_G = np.arange(1, self.atoms + 1, dtype=np.float64) ** -self.rate_exponent
        span = law_G[0] - law_G[-1]
        height_G = (law_G - law_G[-1]) / span if span else np.ones(self.atoms)
        return self.min_rate + (self.max_rate - self.min_rate) * height_G

    @cached_property
    def own_rates(self) -> NDArray[np.float64]:
        """How often each atom would fire if its parent always did, siblings left aside: ``[atoms]``."""
        own_G = self.rates.copy()
        for parent, last in self.families:
            siblings = slice(last - self.children + 1, last + 1)
            share = self.rates[siblings] / self.rates[parent]
            rivals = share.sum() - share if parent in self.exclusive_parents else 0.0
            own_G[siblings] = np.minimum(share * (1 + rivals), 1.0)
        return own_G

    def truth(self) -> Tensor:
        """The atoms ``[atoms, d_in]``, float32; every row has norm 1."""
        atoms_GD = unit_rows(self._random(ATOMS_STREAM), self.atoms, self.d_in)
        if self.near_orthogonal:
            atoms_GD = near_orthogonal(atoms_GD)
        return torch.from_numpy(atoms_GD).float()

    def described(self) -> dict[str, Any]:
        """The rates and families, for JSON."""
        return {
            "rates": [round(float(rate), 6) for rate in self.rates],
            "parent": self.parent_of.tolist(),
            "exclusive_parents": self.exclusive_parents,
        }

    def stream(self, count: int, layer: int) -> Iterator[Tensor]:
        """Draw ``count`` activations of one layer, in parts ``[rows, d_in]``."""
        at_once = max(VALUES_AT_ONCE // self.atoms, 256)
        for number, start in enumerate(range(0, count, at_once)):
            random = self._random(ROWS_STREAM, layer, number)
            yield self.draw(min(at_once, count - start), random)[0]

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` rows ``[count, d_in]`` that are in no store, and which atoms fire in them ``[count,
        atoms]``, bool."""
        at_once = max(VALUES_AT_ONCE // self.atoms, 256)
        parts = [
            self.draw(min(at_once, count - start), self._random(SAMPLE_STREAM, number))
            for number, start in enumerate(range(0, count, at_once))
        ]
        rows, fired = zip(*parts, strict=True)
        return torch.cat(rows), torch.cat(fired)

    def draw(self, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """``count`` activations ``[count, d_in]``, and which atoms fire ``[count, atoms]``, bool."""
        active_NG = self._active(count, random)
        rows_ND = torch.from_numpy(active_NG) @ self._atoms
        rows_ND += torch.from_numpy(self._bias)
        if self.noise:
            std = self.noise / np.sqrt(self.d_in)
            noise_ND = random.standard_normal(rows_ND.shape, np.float32) * np.float32(std)
            rows_ND += torch.from_numpy(noise_ND)
        if self.sinks:
            sink_N = torch.from_numpy(random.random(count) < self.sinks)
            rows_ND[sink_N] += torch.from_numpy(self._vector(2, self.sink_norm))
        return rows_ND, torch.from_numpy(active_NG > 0)

    def _active(self, count: int, random: np.random.Generator) -> Floats:
        """The magnitude of each atom in each row, 0 where it does not fire: ``[count, atoms]``."""
        drawn_NG = random.standard_normal((count, self.atoms), np.float32)
        if self.correlation_rank:
            factor_NR = random.standard_normal((count, self.correlation_rank), np.float32)
            drawn_NG *= np.sqrt(1 - np.square(self._weights).sum(axis=1))
            drawn_NG += factor_NR @ self._weights.T
        active_NG = np.zeros_like(drawn_NG)
        row_A, atom_A = np.nonzero(drawn_NG > self._thresholds)
        deviation_A = random.standard_normal(len(row_A), np.float32) * self._spreads[atom_A]
        active_NG[row_A, atom_A] = np.maximum(self._magnitudes[atom_A] + deviation_A, 0)
        for generation in range(self.depth if self.roots else 0):
            self._follow(active_NG, generation, random)
        return active_NG

    def _follow(self, active_NG: Floats, generation: int, random: np.random.Generator) -> None:
        """Silence children without their parent, and all but one where siblings exclude each other.

        The parents P of a generation follow one another, and so do their children, C of each."""
        before = self.roots * sum(self.children**age for age in range(generation))
        parents = slice(before, before + self.roots * self.children**generation)
        count = parents.stop - parents.start
        below = slice(parents.stop, parents.stop + count * self.children)
        parent_NP = active_NG[:, parents]
        factor_NP = parent_NP / self._magnitudes[parents] if self.scaled else parent_NP > 0
        children_NPC = active_NG[:, below].reshape(len(active_NG), count, self.children)
        children_NPC = children_NPC * factor_NP[:, :, None]
        excluding = [
            p - before for p in self.exclusive_parents if parents.start <= p < parents.stop
        ]
        if excluding:
            drawn_PNC = random.random((len(excluding), len(active_NG), self.children), np.float32)
            lot_NPC = drawn_PNC.transpose(1, 0, 2) * (children_NPC[:, excluding] > 0)
            children_NPC[:, excluding] *= lot_NPC == lot_NPC.max(axis=2, keepdims=True)
        active_NG[:, below] = children_NPC.reshape(len(active_NG), -1)

    @cached_property
    def _atoms(self) -> Tensor:
        return self.truth()

    @cached_property
    def _thresholds(self) -> Floats:
        quantile = NormalDist().inv_cdf
        return np.array(
            [-np.inf if rate >= 1 else quantile(1 - rate) for rate in self.own_rates], np.float32
        )

    @cached_property
    def _weights(self) -> Floats:
        """Each atom's weights on the factors of the copula: ``[atoms, rank]``."""
        shape = self.atoms, self.correlation_rank
        weight_GR = self._random(SHAPE_STREAM, 3).standard_normal(shape) * self.correlation_scale
        square_G1 = np.square(weight_GR).sum(axis=1, keepdims=True)
        weight_GR *= np.sqrt(np.minimum((1 - LEAST_OWN) / np.maximum(square_G1, 1e-12), 1))
        return weight_GR.astype(np.float32)

    @cached_property
    def _magnitudes(self) -> Floats:
        rare = self.magnitude if self.rare_magnitude is None else self.rare_magnitude
        return np.linspace(self.magnitude, rare, self.atoms).astype(np.float32)

    @cached_property
    def _spreads(self) -> Floats:
        varied_G = self._random(SHAPE_STREAM, 4).standard_normal(self.atoms) * self.spread_varies
        return np.abs(self.spread + varied_G).astype(np.float32)

    @cached_property
    def _bias(self) -> Floats:
        return self._vector(1, self.bias)

    def _vector(self, stream: int, norm: float) -> Floats:
        """A fixed random vector of this norm: ``[d_in]``."""
        (vector_D,) = unit_rows(self._random(SHAPE_STREAM, stream), 1, self.d_in)
        return (vector_D * norm).astype(np.float32)

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])


def _problem(name: str, value: Any) -> str:
    """What is expected of a field, where its value is something else."""
    least = {"d_in": 1, "atoms": 1, "children": 1, "depth": 1}.get(name, 0)
    if value is None or isinstance(value, bool):
        return ""
    if name in ("max_rate", "min_rate"):
        return "" if 0 < value <= 1 else "a probability above 0 and at most 1"
    if name in ("exclusive", "sinks"):
        return "" if 0 <= value <= 1 else "a share from 0 to 1"
    return "" if least <= value < np.inf else f"a number from {least}"
