"""Finding what attention and MLP add to the residual stream, by arithmetic in a test pass.

Nothing is taken from a module's name alone: a block's output must be its input plus what was found,
to rounding. A sublayer's output may be multiplied by a constant or normalised again before it is added.
Shapes: N rows (tokens of all sequences), D d_in.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor

from raysae.transformer.recording import BlockRecord, Kind, Place, Record

ROUNDINGS = 1.5
"""A sum of a few terms is equal to a tensor up to this many rounding units of the terms' sizes."""
ROUGHLY = 8.0
"""The same for the quick look at sums of squares, before the exact check."""
HALF_EPS = 1e-5
"""Between the rounding units of 32 and of 16 bits."""
LEAST_SHARE = 0.1
"""A term must be larger than its rounding error in this share of its values, or it proves nothing."""


@dataclass(frozen=True)
class Term:
    """A tensor of a module, times a constant: a part of what a sublayer adds."""

    place: Place
    factor: float = 1.0


@dataclass(frozen=True)
class Added:
    """What one sublayer adds to the residual stream: the sum of its terms."""

    kind: Kind
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Sublayers:
    """What a block adds to the residual stream."""

    added: tuple[Added, ...]
    """In the order in which they are added; together they are all that the block adds."""
    normalised: bool
    """Whether the block normalises the stream itself, as BERT does: ``resid_post`` is then not the
    plain sum."""

    def of(self, kind: Kind) -> Added | None:
        """What attention or MLP adds; None when the block has none."""
        return next((added for added in self.added if added.kind == kind), None)


def find_sublayers(block: BlockRecord, constants: Iterable[float]) -> Sublayers | None:
    """What a recorded block adds to the stream; None when its output is no sum that was found.

    ``constants`` are numbers of the model's configuration, which factors may be equal to.
    """
    assert block.entered is not None and block.left is not None
    search = _Search(block, [1.0, *constants])
    found = list(search.sequential()) or list(search.parallel()) or list(search.single())
    return min(found, key=_cost, default=None)


def sum_error(block: BlockRecord) -> float | None:
    """How far the block's output is from its input plus its attention's and its MLP's first outputs, as
    a share (root mean square) of what the block adds; None when one of them has no output."""
    assert block.entered is not None and block.left is not None
    added_ND = block.left.rows_ND - block.entered.rows_ND
    rest_ND = added_ND.clone()
    for kind in ("attention", "mlp"):
        outputs = [r for r in block.records if r.kind == kind and not r.place.is_input]
        if not outputs:
            return None
        rest_ND -= min(outputs, key=lambda r: r.place.module.count(".")).rows_ND
    return float(rest_ND.norm() / added_ND.norm().clamp(min=1e-300))


def rest_of_sum(block: BlockRecord, found: Sublayers) -> float | None:
    """What is left of a block's output after its input and what was found are taken away, as a share of
    what the block adds; None when that is rounding error, or the block normalises the stream."""
    assert block.entered is not None and block.left is not None
    terms = [term for added in found.added for term in added.terms]
    if found.normalised:
        coarse = block.left.eps > HALF_EPS  # on a few texts, rounding may hide a part
        again = coarse or find_sublayers(block, [term.factor for term in terms]) is not None
        return None if again else 1.0
    records = [block.at(term.place) for term in terms]
    there = [record for record in records if record is not None]
    if len(there) < len(terms):
        return 1.0
    added_ND = block.left.rows_ND - block.entered.rows_ND
    scaled = [t.factor * r.rows_ND for t, r in zip(terms, there, strict=True)]
    rest_ND = added_ND - sum(scaled)
    eps = max(r.eps for r in (block.entered, block.left, *there))
    sizes = sum((s.abs() for s in scaled), block.left.rows_ND.abs() + block.entered.rows_ND.abs())
    if bool((rest_ND.abs() <= 2 * ROUNDINGS * eps * sizes + 1e-30).all()):
        return None
    return float(rest_ND.norm() / added_ND.norm().clamp(min=1e-300))


def _cost(found: Sublayers) -> tuple[int, int, int, int, int]:
    """The plainest is the least: known kinds, no norms, few terms, no factors, short names."""
    terms = [term for added in found.added for term in added.terms]
    return (
        sum(added.kind == "other" for added in found.added),
        int(found.normalised),
        len(terms),
        sum(term.factor != 1.0 for term in terms),
        sum(term.place.module.count(".") for term in terms),
    )


@dataclass(frozen=True)
class _Point:
    """The stream at one moment: its value, and whether it was normalised since it entered."""

    record: Record
    number: int
    normalised: bool


class _Search:
    """The tensors of a block that differ, with all their inner products."""

    def __init__(self, block: BlockRecord, constants: list[float]):
        self.constants = constants
        assert block.entered is not None and block.left is not None
        self.records, self.number = _distinct([block.entered, block.left, *block.records])
        flat = torch.stack([r.rows_ND.flatten() for r in self.records])
        self.gram = flat @ flat.T
        self.start, self.end = self.number[block.entered], self.number[block.left]
        self.both = block.kinds >= {"attention", "mlp"}
        self.norms = [(self.number[a], self.number[b]) for a, b in block.norms]
        outputs: dict[int, Record] = {}
        for record in sorted(block.records, key=_rank, reverse=True):  # the best one last
            if not record.place.is_input:
                outputs[self.number[record]] = record
        self.outputs = {n: outputs[n] for n in outputs if n not in (self.start, self.end)}

    def sequential(self) -> Iterator[Sublayers]:
        """One sublayer is added after the other."""
        for first in self._entries():
            for number, one in self._steps(first):
                middle = _Point(self.records[number], number, first.normalised)
                for second in self._with_norms(middle):
                    for end, two in self._steps(second):
                        if one.kind == two.kind:
                            continue
                        for normalised in self._exits(end, second):
                            yield Sublayers((one, two), normalised)

    def parallel(self) -> Iterator[Sublayers]:
        """Two sublayers are added at once."""
        pairs = [
            (a, b)
            for a, b in product(self.outputs, self.outputs)
            if (self.outputs[a].kind, self.outputs[b].kind) == ("attention", "mlp")
        ]
        for point, end in product(self._entries(), self._ends()):
            for terms in self._pairs(end, point.number, pairs):
                added = (Added("attention", terms[:1]), Added("mlp", terms[1:]))
                for normalised in self._exits(end, point):
                    yield Sublayers(added, normalised)

    def single(self) -> Iterator[Sublayers]:
        """The block has one sublayer."""
        if self.both:  # what is added may come from both
            return
        for point in self._entries():
            for end, added in self._steps(point):
                for normalised in self._exits(end, point):
                    yield Sublayers((added,), normalised)

    def _entries(self) -> list[_Point]:
        return self._with_norms(_Point(self.records[self.start], self.start, False))

    def _ends(self) -> list[int]:
        return [self.end, *(a for a, b in self.norms if b == self.end)]

    def _exits(self, number: int, point: _Point) -> Iterator[bool]:
        """Whether the stream was normalised on its way, if it leaves the block from here."""
        if number == self.end:
            yield point.normalised
        elif (number, self.end) in self.norms:
            yield True

    def _with_norms(self, point: _Point) -> list[_Point]:
        """The point, and what norms make of it: some models add to that."""
        after = [_Point(self.records[b], b, True) for a, b in self.norms if a == point.number]
        return [point, *after]

    def _steps(self, point: _Point) -> Iterator[tuple[int, Added]]:
        """Every tensor that is the point plus what one sublayer adds."""
        start, parts = point.number, [n for n in self.outputs if n != point.number]
        for end, part, factor in self._candidates(start, parts):
            terms = self._checked(end, start, (part,), (factor,))
            if terms is not None:
                yield end, Added(self.outputs[part].kind, terms)
        for kind in ("attention", "mlp"):
            same = [n for n in parts if self.outputs[n].kind == kind and n != self.end]
            for terms in self._pairs(self.end, start, list(combinations(same, 2))):
                yield self.end, Added(kind, terms)  # routed and shared experts, for instance

    def _candidates(self, start: int, parts: list[int]) -> list[tuple[int, int, float]]:
        """Triples (end, part, factor) for which ``end = start + factor * part`` roughly holds."""
        if not parts:
            return []
        gram, square = self.gram, self.gram.diagonal()
        factor = (gram[:, parts] - gram[start, parts]) / square[parts].clamp(min=1e-300)
        apart = square + square[start] - 2 * gram[:, start]
        rest = apart[:, None] - factor**2 * square[parts]
        size = square[:, None] + square[start] + factor**2 * square[parts]
        good = (rest <= self._bound() * size) & (factor != 0)
        good[[start, self.start]] = False
        found = [(end, parts[n], float(factor[end, n])) for end, n in good.nonzero().tolist()]
        return [(end, part, factor) for end, part, factor in found if end != part]

    def _pairs(
        self, end: int, start: int, pairs: list[tuple[int, int]]
    ) -> Iterator[tuple[Term, ...]]:
        """The terms of every pair with ``end = start + factor * part + factor * part``."""
        pairs = [pair for pair in pairs if not {end, start} & set(pair)]
        if not pairs or end == start:
            return
        a, b = torch.tensor(pairs).T
        gram, square = self.gram, self.gram.diagonal()
        right_a, right_b = gram[a, end] - gram[a, start], gram[b, end] - gram[b, start]
        det = square[a] * square[b] - gram[a, b] ** 2
        of_a = (right_a * square[b] - right_b * gram[a, b]) / det
        of_b = (right_b * square[a] - right_a * gram[a, b]) / det
        apart = square[end] + square[start] - 2 * gram[end, start]
        rest = apart - of_a * right_a - of_b * right_b
        size = square[end] + square[start] + of_a**2 * square[a] + of_b**2 * square[b]
        good = (det > 1e-9 * square[a] * square[b]) & (rest <= self._bound() * size)
        for n in good.nonzero().flatten().tolist():
            terms = self._checked(end, start, pairs[n], (float(of_a[n]), float(of_b[n])))
            if terms is not None:
                yield terms

    def _bound(self) -> float:
        """How large a rest the quick look admits, as a share of the sum of squares of the terms."""
        return (ROUGHLY * max(record.eps for record in self.records)) ** 2 + 1e-14

    def _checked(
        self, end: int, start: int, parts: tuple[int, ...], factors: tuple[float, ...]
    ) -> tuple[Term, ...] | None:
        """The terms, if the sum holds to rounding with factors of few digits."""
        records = [self.records[n] for n in (end, start, *parts)]
        eps = max(record.eps for record in records)
        rounded = [self._rounded(factor, eps) for factor in factors]
        end_ND, start_ND, *parts_ND = [record.rows_ND for record in records]
        if not _adds_up(end_ND, start_ND, parts_ND, rounded, eps):
            return None
        places = [self.outputs[n].place for n in parts]
        return tuple(Term(place, f) for place, f in zip(places, rounded, strict=True))

    def _rounded(self, factor: float, eps: float) -> float:
        """The constant that the factor is equal to within its error, or the factor in few digits."""
        for constant in self.constants:
            if abs(factor - constant) <= 2 * eps * abs(constant):
                return constant
        return float(f"{factor:.{7 if eps < 1e-5 else 4}g}")


def _rank(record: Record) -> tuple[bool, bool, int]:
    """Of places that hold equal tensors, the least is the best: of known kind and layout, outermost."""
    place = record.place
    return (record.kind == "other", place.layout != "batch first", place.module.count("."))


def _adds_up(
    end_ND: Tensor, start_ND: Tensor, parts_ND: list[Tensor], factors: list[float], eps: float
) -> bool:
    """Whether the sum holds for every value to its rounding error, and would not without a part."""
    scaled = [factor * part for factor, part in zip(factors, parts_ND, strict=True)]
    rest_ND = end_ND - start_ND - sum(scaled)
    sizes = sum((part.abs() for part in scaled), end_ND.abs().maximum(start_ND.abs()))
    bound_ND = ROUNDINGS * eps * sizes + 1e-30
    if not bool((rest_ND.abs() <= bound_ND).all()):
        return False
    return all(float((part.abs() > bound_ND).double().mean()) > LEAST_SHARE for part in scaled)


def _distinct(records: list[Record]) -> tuple[list[Record], dict[Record, int]]:
    """The records without repeats of equal tensors, and the number of each record's tensor."""
    kept: list[Record] = []
    by_sum: dict[float, list[int]] = {}
    number: dict[Record, int] = {}
    for record in records:
        same = by_sum.setdefault(float(record.rows_ND.sum()), [])
        equal = [n for n in same if torch.equal(kept[n].rows_ND, record.rows_ND)]
        if not equal:
            same.append(len(kept))
            equal = [len(kept)]
            kept.append(record)
        number[record] = equal[0]
    return kept, number
