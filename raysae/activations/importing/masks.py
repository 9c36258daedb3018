"""Padding: which rows of the file are no tokens, by a mask, by lengths or by the padding's token id.

Shapes: S sequences, T tokens of each, N rows.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.activations.importing.columns import as_array, size_of
from raysae.activations.importing.names import find_mask, is_length, last_part
from raysae.activations.importing.options import ImportOptions
from raysae.activations.importing.source import Source
from raysae.errors import UserError

PAD_NAMES = ("pad_token_id", "pad_id", "padding_idx", "pad_token")
BULK = 0.01
"""From this fraction of the rows on, something is told of them."""
WAY = "say --key mask=NAME where 1 is a token, --key padding=NAME where 1 is padding, or --key mask=none"


def with_mask(source: Source, named: Mapping[str, Any], options: ImportOptions) -> Source:
    """The source without the rows that are padding, by the mask among ``named``, the leaves beside the
    activations, and by the padding's token id.

    Raises UserError when a mask does not fit or is not clear, or no row is left.
    """
    found = find_mask(named, options.keys, source.path)
    if found is not None:
        role, name = found
        kept_N = _kept(role, name, named[name], source)
        if role not in options.keys:
            _refuse_inverse(role, name, kept_N, source)
        source = _keeping(source, kept_N, name)
    elif "mask" not in options.keys and "padding" not in options.keys:
        _refuse_lengths(source, named)
    pad = options.pad_token if options.pad_token is not None else _pad_token(named)
    if options.pad_token is not None or (pad is not None and found is None):
        assert pad is not None
        source = _without_token(source, pad, options.pad_token is not None)
    return source


def kept_rows_of(source: Source, leaf: Any) -> bool:
    """Whether the leaf has a value for each row, so that its shape can tell the sequences."""
    return size_of(leaf) == source.rows


def same_token_runs(source: Source) -> tuple[int, int] | None:
    """The token whose runs (of 2 and more) at the ends of sequences hold the most rows, and the number
    of these rows; None when there are no token ids or no such runs."""
    tokens = source.column("token_id")
    if tokens is None or not source.tokenwise:
        return None
    ids = tokens.at(np.arange(source.rows, dtype=np.int64))
    last = (np.cumsum(source.lengths) - 1)[source.lengths > 1]
    first = last + 1 - source.lengths[source.lengths > 1]
    at_ends = [ids[last][ids[last] == ids[last - 1]], ids[first][ids[first] == ids[first + 1]]]
    found, counts = np.unique(np.concatenate(at_ends), return_counts=True)
    if not len(found):
        return None
    most = int(found[counts.argmax()])
    return most, int(runs_at_ends(ids == most, source, least=2).sum())


def runs_at_ends(is_it_N: NDArray[np.bool_], source: Source, least: int = 1) -> NDArray[np.bool_]:
    """The rows of runs of at least ``least`` at the start or the end of their sequence, ``[N]``."""
    rows = np.arange(source.rows, dtype=np.int64)
    start_N = np.repeat(np.cumsum(source.lengths) - source.lengths, source.lengths)
    end_N = start_N + np.repeat(source.lengths, source.lengths)
    other_before_N = np.maximum.accumulate(np.where(is_it_N, -1, rows)) >= start_N
    after = np.where(is_it_N, source.rows, rows)[::-1]
    other_after_N = np.minimum.accumulate(after)[::-1] < end_N
    run_N = is_it_N & ~(other_before_N & other_after_N)
    begins_N = run_N & (~np.roll(run_N, 1) | (rows == start_N))
    number_N = np.cumsum(begins_N)
    return run_N & (np.bincount(number_N, weights=run_N)[number_N] >= least)


def _kept(role: str, name: str, leaf: Any, source: Source) -> NDArray[np.bool_]:
    """Whether each row is a token, ``[N]``. Raises UserError when the leaf is no mask of that shape."""
    values = as_array(leaf)
    where = f"{source.path}: {name} ({role})"
    if values is None:
        raise UserError(f"{where} does not hold numbers; {WAY}")
    if is_length(name) or (values.ndim == 1 and _are_lengths(values, source)):
        return _of_lengths(where, values, source)
    _refuse_shape(where, values, source)
    values = np.tile(values.reshape(-1), source.rows // values.size)
    odd = np.flatnonzero((values != 0) & (values != 1))
    if len(odd):
        raise UserError(
            f"{where} holds {values[odd[0]]} at row {odd[0]}; expected only 0 and 1, or false and true; "
            "of a mask that is added to scores, save mask == 0"
        )
    return (values == 1) != (role == "padding")


def _refuse_shape(where: str, values: NDArray[Any], source: Source) -> None:
    whole, once = source.rows, source.rows // source.copies
    shape = [size for size in values.shape if size != 1]
    table = [s for s in (source.sequences // source.copies, source.tokens) if s != 1]
    if source.starts is None and source.tokenwise:
        fits = shape in ([whole], [once], table, [source.sequences, source.tokens])
    else:
        fits = values.size in (whole, once)
    if not fits:
        raise UserError(
            f"{where} is {list(values.shape)}, while the activations are {list(source.shape)}; expected "
            "a 0 or 1 for each row, as [sequences, tokens]; save it in that shape, or leave it out "
            "with --key mask=none"
        )


def _are_lengths(values: NDArray[Any], source: Source) -> bool:
    counts = values.dtype.kind in "iu" and values.size == source.sequences // source.copies
    return bool(counts and source.tokens > 1 and values.size and values.max() > 1)


def _of_lengths(where: str, values: NDArray[Any], source: Source) -> NDArray[np.bool_]:
    """A mask from the number of tokens of each sequence, which stand at its start."""
    values = np.tile(values.reshape(-1), source.copies)
    fits = values.dtype.kind in "iu" and values.size == source.sequences
    if not fits or (values < 0).any() or (values > source.lengths).any():
        raise UserError(
            f"{where} does not hold the number of tokens of each of {source.sequences:,} sequences, at "
            f"most {int(source.lengths.max())}; {WAY}"
        )
    first = np.cumsum(source.lengths) - source.lengths
    place_N = np.arange(source.rows) - np.repeat(first, source.lengths)
    return place_N < np.repeat(values.astype(np.int64), source.lengths)


def _refuse_lengths(source: Source, named: Mapping[str, Any]) -> None:
    """Raise UserError when a column says that sequences are shorter than the activations' T."""
    for name, leaf in named.items():
        values = as_array(leaf) if is_length(name) and source.tokenwise else None
        if values is None or values.ndim != 1 or source.starts is not None:
            continue
        if _are_lengths(values, source) and (values < source.tokens).any():
            raise UserError(
                f"{source.path}: {name} says that sequences have fewer tokens than the activations' "
                f"{source.tokens}, so that the other rows are padding; if the tokens stand at the "
                f"start of each sequence, say --key mask={name}; else give a mask [sequences, tokens], "
                f"or say --key mask=none if {name} means something else"
            )


def _refuse_inverse(role: str, name: str, kept_N: NDArray[np.bool_], source: Source) -> None:
    """Raise UserError when the mask's name leaves open what 1 means, and its values speak against it."""
    first = np.cumsum(source.lengths) - source.lengths
    per_S = np.add.reduceat(kept_N.astype(np.int64), first[source.lengths > 0])
    lengths = source.lengths[source.lengths > 0]
    clear = role == "mask" and last_part(name) not in ("mask", "token_mask", "src_mask")
    empty, full = (per_S == 0).any(), (per_S == lengths).any()
    causal = len(per_S) == source.tokens > 1 and bool((per_S == np.arange(len(per_S)) + 1).all())
    if causal:
        raise UserError(
            f"{source.path}: {name} could be the causal mask of one sequence, as sequence 1 has 1 token, "
            f"sequence 2 has 2, and so on; {WAY}"
        )
    doubt = source.tokenwise and empty and not full and not clear
    tokens = source.column("token_id")
    if tokens is not None and kept_N.any() and not kept_N.all():
        ids = tokens.at(np.arange(source.rows, dtype=np.int64))
        one = np.ptp(ids[kept_N]) == 0 and np.count_nonzero(kept_N) > source.sequences
        doubt |= bool(one and np.ptp(ids[~kept_N]) > 0)
    if doubt or not kept_N.any():
        meaning = "a token" if role == "mask" else "padding"
        raise UserError(
            f"{source.path}: {name}: with 1 for {meaning}, {int((per_S == 0).sum()):,} of "
            f"{len(per_S):,} sequences would have no token"
            + (", or tokens of one id only" if tokens is not None else "")
            + f"; if that is right, or the other way round, {WAY}"
        )


def _keeping(source: Source, kept_N: NDArray[np.bool_], name: str) -> Source:
    """The source with only the rows that it kept so far and ``kept_N`` keeps."""
    if source.kept_N is not None:
        kept_N = kept_N & source.kept_N
    out = source.rows - int(np.count_nonzero(kept_N))
    if out == source.rows:
        raise UserError(f"{source.path}: by {name}, all {source.rows:,} rows are padding; {WAY}")
    words = f"mask from {name}: {out:,} of {source.rows:,} rows are padding and left out"
    return replace(source.saying(words), kept_N=kept_N if out else source.kept_N)


def _pad_token(named: Mapping[str, Any]) -> int | None:
    """The padding's token id where the file says it, as in a config beside the activations."""
    for name, leaf in named.items():
        values = as_array(leaf) if name.rsplit(".", 1)[-1].lower() in PAD_NAMES else None
        if values is not None and values.size == 1 and values.dtype.kind in "iu":
            return int(values.reshape(-1)[0])
    return None


def _without_token(source: Source, pad: int, asked: bool) -> Source:
    """The source without the runs of the padding's token at the ends of sequences. One such token alone
    is padding, too; within a sequence it is text, as some tokenizers pad with their end of text."""
    tokens = source.column("token_id")
    if tokens is None or not source.tokenwise:
        if asked:
            raise UserError(
                f"{source.path}: --pad-token {pad}: the file has no token ids [sequences, tokens] (such "
                "as input_ids); give a mask, or name the ids with --key token_id=NAME"
            )
        return source
    is_pad_N = tokens.at(np.arange(source.rows, dtype=np.int64)) == pad
    return _keeping(source, ~runs_at_ends(is_pad_N, source), f"{tokens.name}, padded with {pad}")
