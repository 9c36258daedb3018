"""Which rows of a source go to which site, and in what order.

Shapes: N rows, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysae.activations.importing.options import ImportOptions
from raysae.activations.importing.source import Column, Source
from raysae.activations.writer import SiteRows
from raysae.errors import UserError
from raysae.sites import Position, Site

PIECE_ROWS = 2_048
PIECE_BYTES = 16 * 2**20
LEAST_PIECES = 64
"""Least number of pieces, so that a small file is shuffled too."""


@dataclass(frozen=True)
class Selection:
    """The rows of a site, as row numbers of the source, in the source's order."""

    site: Site
    rows: range | NDArray[np.int64]
    sequence: NDArray[np.int64] | None = None
    """Sequence ids counted within the site, when the source has several sites and no ids."""

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, piece: slice) -> NDArray[np.int64]:
        """The row numbers of a piece of the site."""
        return as_array(self.rows[piece])


def select_sites(source: Source, options: ImportOptions) -> list[Selection]:
    """The sites of an import, from the file and the options.

    Raises UserError when no row matches, or the layer or position is not known.
    """
    layer, position = source.column("layer"), source.column("position")
    if isinstance(options.position, str):
        position = None  # a pool takes the tokens of every position
    rows = _picked(source, options) if position is None else _kept(source)
    if layer is None and position is None:
        return [Selection(Site(_layer(source, options), _position(source, options)), rows)]
    row_N = as_array(rows)
    layer_N, right_layer_N = _values(layer, row_N, options.layer)
    position_N, right_position_N = _values(position, row_N, options.position)
    wanted_N = right_layer_N & right_position_N
    if not wanted_N.any():
        raise UserError(
            f"{source.path}: no rows of layer {options.layer}, position {options.position}; it has "
            f"{_description(layer, 'layers')}, {_description(position, 'positions')}"
        )

    def site(first: int) -> Site:
        return Site(
            _layer(source, options) if layer is None else int(layer_N[first]),
            _position(source, options) if position is None else int(position_N[first]),
        )

    return _grouped(source, row_N, layer_N * 2**24 + position_N, wanted_N, site)


def pieces(rows: int, d_in: int) -> list[slice]:
    """Cut ``rows`` rows into pieces of consecutive rows, at most 2,048 rows and 16 MiB of float32 each.

    The cut depends on the numbers alone, so sites with equally many rows are shuffled in the same way.
    """
    size = min(PIECE_ROWS, PIECE_BYTES // (4 * d_in), rows // LEAST_PIECES)
    size = max(size, 1)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def shuffled_pieces(rows: int, d_in: int, seed: int) -> list[slice]:
    """The pieces in the order in which they are written; the writer shuffles within a shard."""
    in_order = pieces(rows, d_in)
    return [in_order[i] for i in np.random.default_rng([seed, 0, 1]).permutation(len(in_order))]


def site_rows(source: Source, selection: Selection, piece: slice) -> SiteRows:
    """Read a piece of a site from the file, with the origin of each row."""
    row_N = selection.at(piece)
    token_id = source.column("token_id")
    return SiteRows(
        source.take(row_N),
        _sequence(source, selection, piece, row_N),
        _token_index(source, selection, row_N).astype(np.int32),
        (np.zeros_like(row_N) if token_id is None else token_id.at(row_N)).astype(np.int32),
    )


def as_array(rows: range | NDArray[np.int64]) -> NDArray[np.int64]:
    """The row numbers as an array ``[N]``."""
    if isinstance(rows, range):
        return np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)
    return rows


def _kept(source: Source) -> range | NDArray[np.int64]:
    """All rows that are no padding."""
    return range(source.rows) if source.kept_N is None else source.kept_rows()


def _picked(source: Source, options: ImportOptions) -> range | NDArray[np.int64]:
    """All rows that are no padding, or those of one token of each sequence."""
    if not source.tokenwise or not isinstance(options.position, int):
        return _kept(source)
    token = options.position
    even = source.kept_N is None and source.starts is None
    kept = np.arange(0) if even else source.kept_rows()
    counts_S = (
        source.lengths
        if even
        else np.bincount(source.sequence_of(kept), minlength=source.sequences)
    )
    has_S = counts_S > token if token >= 0 else counts_S >= -token
    if not has_S.any():
        most = int(counts_S.max())
        raise UserError(
            f"{source.path}: --position {token}: its sequences have {most} tokens; expected "
            f"{-most} to {most - 1}, or all"
        )
    if even:
        return range(token % source.tokens, source.rows, source.tokens)
    end_S = np.cumsum(counts_S)
    return kept[(end_S - counts_S + token if token >= 0 else end_S + token)[has_S]]


def _layer(source: Source, options: ImportOptions) -> int:
    layer = source.layer if options.layer is None else options.layer
    if layer is None:
        raise UserError(f"{source.path}: it does not say its layer; give --layer L")
    return layer


def _position(source: Source, options: ImportOptions) -> Position:
    position = source.position if options.position is None else options.position
    if position is None:
        raise UserError(
            f"{source.path}: it does not say its position; give --position P, the token that its "
            "rows belong to (-1 is the last), or --position all"
        )
    return position


def _values(
    column: Column | None, row_N: NDArray[np.int64], wanted: Position | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The column's values ``[N]``, and whether each is the wanted one."""
    if column is None:
        return np.zeros_like(row_N), np.ones(len(row_N), bool)
    values = column.at(row_N)
    return values, np.ones(len(row_N), bool) if wanted is None else values == wanted


def _description(column: Column | None, what: str) -> str:
    if column is None:
        return f"no {what} of its own"
    values = np.unique(column.values)
    shown = ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")
    return f"{what} {shown}"


def _grouped(
    source: Source,
    row_N: NDArray[np.int64],
    code_N: NDArray[np.int64],
    wanted_N: NDArray[np.bool_],
    site: Callable[[int], Site],
) -> list[Selection]:
    """The wanted rows by site, each site's rows in the file's order."""
    wanted = np.flatnonzero(wanted_N)
    order = wanted[np.argsort(code_N[wanted], kind="stable")]
    ends = np.flatnonzero(np.diff(code_N[order])) + 1
    counted = source.ids is None
    return [
        Selection(
            site(group[0]),
            row_N[group],
            np.unique(source.sequence_of(row_N[group]), return_inverse=True)[1]
            if counted
            else None,
        )
        for group in np.split(order, ends)
    ]


def _sequence(
    source: Source, selection: Selection, piece: slice, row_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    column = source.ids
    if column is not None:
        return column.at(row_N)
    return source.sequence_of(row_N) if selection.sequence is None else selection.sequence[piece]


def _token_index(
    source: Source, selection: Selection, row_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Each row's token index: from its column, or else from the file's shape or the position."""
    index, position = source.column("token_index"), source.column("position")
    if index is not None:
        return index.at(row_N)
    if source.tokenwise:
        return source.place_of(row_N)
    if position is not None:
        return np.maximum(position.at(row_N), 0)
    numbered = isinstance(selection.site.position, int)
    return np.full_like(row_N, max(int(selection.site.position), 0) if numbered else 0)
