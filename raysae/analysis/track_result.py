"""What tracking found: counts and shares with intervals, chains, trajectories, and their section."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa

from raysae.analysis.chains import Chain, Line, lines_of, trajectories
from raysae.analysis.intervals import bootstrap_ratio, interval_text, known, wilson
from raysae.analysis.phase import Item, Result
from raysae.analysis.section import Section, Table
from raysae.analysis.track_files import Pair, read_means, read_pair
from raysae.report.atlas_rows import has_parity, parity
from raysae.report.claims import welch_interval

Row = dict[str, Any]
STRONG = 0.5
"""A kept match above this is called strong: the threshold tells from chance alone."""
NOTES = [
    "A feature is compared when it is active on enough of the rows that both sites have, and among "
    "the densest of its site. Features are paired one to one so that the sum of the measure is "
    "largest (Hungarian method); a pair whose measure is above the threshold is kept, a feature "
    "without such a pair dies, or is born. The threshold is the measure that pairs exceed at the "
    "stated rate where nothing belongs together: rows permuted by sequence (the t-th row of a "
    "sequence meets the t-th of another), and in place of the second decoder random rows of its own "
    "second moments (or with tracking.null=rotation its rows turned, which leaves out that they all "
    "lie where activations vary). The control is one more such permutation, "
    "which the threshold was not chosen by.",
    "Intervals are 95%: bootstraps over features (of chains: over chains, so that features that are "
    "matched are drawn together), Wilson's for the control, Welch's t over positions for odd and "
    "even ones.",
]


def summary(folders: Mapping[Item, Path], settings: Any, seed: int) -> Result:
    """The result of the pairs in these folders."""
    pairs = [read_pair(folder) for folder in folders.values()]
    layers = [pair for pair in pairs if not pair.by_position]
    positions = [pair for pair in pairs if pair.by_position]
    lines = lines_of(
        {
            (pair.first, pair.second): (set(pair.features[0]), set(pair.features[1]), pair.links)
            for pair in layers
        }
    )
    chains = [(line, chain) for line in lines for chain in line.chains()]
    figures = {
        **_kept_figures("", layers, seed), **_kept_figures("position_", positions, seed),
        **_chain_figures(chains, seed),
    }  # fmt: skip
    section = Section(
        [*_kept_sentences(figures, layers, positions, settings), *_chain_sentences(figures, chains),
         *_parity_sentences(lines, layers)],
        [_layer_table(layers, seed), _position_table(lines, layers, seed)] if layers else [],
        NOTES,
    )  # fmt: skip
    tables = {
        "pairs": [_pair_row(pair, seed) for pair in pairs],
        "matches": [{**_sites(pair), **row} for pair in pairs for row in pair.matches],
        "chains": [_chain_row(number, chain) for number, (_, chain) in enumerate(chains)],
        "flow": [row for line in lines for row in flow_rows(line)],
    }
    parts = partial(trajectory_tables, chains, list(folders.values()))
    kept = figures.get("kept_share") or figures.get("position_kept_share")
    brief = f"{kept:.1%} of features kept" if kept is not None else "no feature kept"
    return Result(
        figures, section, tables, brief + _control_brief(figures), {"trajectories": parts}
    )  # fmt: skip


def _control_brief(figures: Mapping[str, Any]) -> str:
    control = figures.get("control_share", figures.get("position_control_share"))
    return "" if control is None else f"; {control:.1%} where rows are permuted"


def _kept_figures(prefix: str, pairs: Sequence[Pair], seed: int) -> dict[str, float | None]:
    if not pairs:
        return {}
    kept, compared = sum(pair.kept for pair in pairs), sum(len(pair.features[0]) for pair in pairs)
    matches = sum(pair.compared for pair in pairs)
    control = sum(pair.control_kept for pair in pairs)
    low, high = bootstrap_ratio(_flags(pairs), None, seed)
    below, above = wilson(control, matches)
    return {
        f"{prefix}pairs": float(len(pairs)), f"{prefix}features": float(compared),
        f"{prefix}kept_share": kept / compared, f"{prefix}kept_share_low": low,
        f"{prefix}kept_share_high": high, f"{prefix}control_share": control / matches,
        f"{prefix}control_share_low": below, f"{prefix}control_share_high": above,
        f"{prefix}control_matches": float(matches),
        f"{prefix}strong_share": sum(map(_strong, pairs)) / compared,
    }  # fmt: skip


def _strong(pair: Pair) -> int:
    """Kept features whose match is strong."""
    return sum(row["kept"] and row["score"] > STRONG for row in pair.matches)


def _flags(pairs: Sequence[Pair]) -> list[float]:
    """For every feature of the first sites whether it is kept."""
    return [
        float(one in links) for pair in pairs for links in [pair.links] for one in pair.features[0]
    ]


def _chain_figures(chains: Sequence[tuple[Line, Chain]], seed: int) -> dict[str, float | None]:
    if not chains:
        return {}
    lengths = np.array([chain.length for _, chain in chains], float)
    whole = np.array([chain.length == len(line.sites) for line, chain in chains])
    alone = lengths == 1
    found: dict[str, float | None] = {
        "chains": float(len(chains)), "chain_features": float(lengths.sum()),
        "chain_length": float(lengths.mean()),
        "shared_share": float(lengths[whole].sum() / lengths.sum()),
        "specific_share": float(lengths[alone].sum() / lengths.sum()),
        "shared_features": float(lengths[whole].sum()),
        "specific_features": float(lengths[alone].sum()),
    }  # fmt: skip
    ends = {
        "chain_length": bootstrap_ratio(lengths, None, seed),
        "shared_share": bootstrap_ratio(lengths * whole, lengths, seed),
        "specific_share": bootstrap_ratio(lengths * alone, lengths, seed),
    }
    for name, (low, high) in ends.items():
        found |= {f"{name}_low": known(low), f"{name}_high": known(high)}
    return found


def _kept_sentences(
    figures: Mapping[str, Any], layers: Sequence[Pair], positions: Sequence[Pair], settings: Any
) -> list[str]:
    said = []
    for prefix, pairs, where in (("", layers, "layer"), ("position_", positions, "position")):
        if pairs:
            said.append(
                f"From one {where} to the next, {figures[f'{prefix}kept_share']:.1%} of "
                f"{figures[f'{prefix}features']:,.0f} features are kept (95% CI "
                f"{_ends(figures, f'{prefix}kept_share')}, {len(pairs)} pairs of sites), and "
                f"{figures[f'{prefix}strong_share']:.1%} with a measure above {STRONG}; where rows are "
                f"permuted and decoders random, {figures[f'{prefix}control_share']:.1%} of "
                f"{figures[f'{prefix}control_matches']:,.0f} matches are (95% CI "
                f"{_ends(figures, f'{prefix}control_share')}; {settings.false_matches:.1%} was asked "
                "for)."
            )
    return said


def _ends(figures: Mapping[str, Any], name: str, form: str = "{:.1%}") -> str:
    ends = [figures.get(f"{name}_{end}") for end in ("low", "high")]
    return interval_text(tuple(float("nan") if end is None else end for end in ends), form)  # type: ignore[arg-type]


def _chain_sentences(figures: Mapping[str, Any], chains: Sequence[tuple[Line, Chain]]) -> list[str]:
    if not chains:
        return []
    return [
        f"A feature persists through {figures['chain_length']:.2f} layers in the mean (95% CI "
        f"{_ends(figures, 'chain_length', '{:.2f}')}, n {len(chains):,} chains).",
        f"Of {figures['chain_features']:,.0f} features, {figures['shared_features']:,.0f} "
        f"({figures['shared_share']:.1%}, 95% CI {_ends(figures, 'shared_share')}) are in chains through "
        f"all layers, and {figures['specific_features']:,.0f} ({figures['specific_share']:.1%}, 95% CI "
        f"{_ends(figures, 'specific_share')}) are of one layer alone.",
    ]


def _parity_sentences(lines: Sequence[Line], layers: Sequence[Pair]) -> list[str]:
    said = []
    for hookpoint in sorted({line.sites[0].hookpoint or "" for line in lines}):
        share, length = {}, {}
        for line in lines:
            if (line.sites[0].hookpoint or "") == hookpoint:
                position = str(line.position)
                share[position] = _share_at(line, layers)
                length[position] = fmean(chain.length for chain in line.chains())
        said += _compared("The share of features kept", "{:.3f}", share, hookpoint)
        said += _compared("The mean length of chains", "{:.2f} layers", length, hookpoint)
    return said


def _share_at(line: Line, layers: Sequence[Pair]) -> float:
    here = _pairs_at(line, layers)
    return sum(pair.kept for pair in here) / sum(len(pair.features[0]) for pair in here)


def _pairs_at(line: Line, layers: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in layers if pair.first in line.sites and pair.second in line.sites]


def _compared(what: str, form: str, values: Mapping[str, float], hookpoint: str) -> list[str]:
    """The values at even and odd positions compared, where there are two of each."""
    even = [value for position, value in values.items() if parity(position) == "even"]
    odd = [value for position, value in values.items() if parity(position) == "odd"]
    if min(len(even), len(odd)) < 2 or not has_parity(list(values)):
        return []
    low, high = welch_interval(even, odd)
    verdict = "is no clearly other" if low <= 0 <= high else "differs"
    named = f" of {hookpoint}" if hookpoint else ""
    return [
        f"{what}{named} {verdict} at even positions ({form.format(fmean(even))}, n {len(even)}) than at "
        f"odd ones ({form.format(fmean(odd))}, n {len(odd)}): difference "
        f"{fmean(even) - fmean(odd):+.3f}, 95% CI {low:+.3f} to {high:+.3f} (Welch's t over positions)."
    ]


def flow_rows(line: Line) -> list[Row]:
    """For each layer of a line: features compared, kept to the next, dying and born there."""
    rows = []
    for number, (site, present) in enumerate(zip(line.sites, line.present, strict=True)):
        kept = len(line.links[number]) if number < len(line.links) else None
        came = len(line.links[number - 1]) if number else None
        rows.append(
            {
                **site.columns, "position": str(site.position), "compared": len(present),
                "kept": kept, "died": None if kept is None else len(present) - kept,
                "born": None if came is None else len(present) - came,
            }
        )  # fmt: skip
    return rows


def _sites(pair: Pair) -> Row:
    named = {} if pair.first.hookpoint is None else {"hookpoint": pair.first.hookpoint}
    return {
        **named, "first_layer": pair.first.layer, "first_position": str(pair.first.position),
        "second_layer": pair.second.layer, "second_position": str(pair.second.position),
    }  # fmt: skip


def _pair_row(pair: Pair, seed: int) -> Row:
    compared = [len(one) for one in pair.features]
    low, high = bootstrap_ratio(_flags([pair]), None, seed)
    below, above = wilson(pair.control_kept, pair.compared)
    return {
        **_sites(pair), "rows": pair.rows, "sequences": pair.sequences, "live_first": pair.live[0],
        "live_second": pair.live[1], "compared_first": compared[0], "compared_second": compared[1],
        "kept": pair.kept, "strong": _strong(pair), "died": compared[0] - pair.kept,
        "born": compared[1] - pair.kept,
        "kept_share": pair.kept / compared[0], "kept_share_low": low, "kept_share_high": high,
        "control_share": pair.control_kept / pair.compared, "control_share_low": below,
        "control_share_high": above, "threshold": pair.threshold, "null_mean": pair.null_mean,
    }  # fmt: skip


def _chain_row(number: int, chain: Chain) -> Row:
    first = chain.sites[0]
    named = {} if first.hookpoint is None else {"hookpoint": first.hookpoint}
    return {
        "chain": number, **named, "position": str(first.position), "first_layer": first.layer,
        "length": chain.length, "layers": [site.layer for site in chain.sites],
        "features": list(chain.features),
    }  # fmt: skip


def _layer_table(layers: Sequence[Pair], seed: int) -> Table:
    steps: dict[tuple[int, int], list[Pair]] = {}
    for pair in layers:
        steps.setdefault((pair.first.layer, pair.second.layer), []).append(pair)
    return Table(
        "Features from layer to layer",
        ["from", "to", "pairs", "compared", "kept", "strong", "died", "born", "kept share", "95% CI",
         "control"],
        [[*step, len(pairs), *_counts(pairs, seed)] for step, pairs in sorted(steps.items())],
        "Sums over positions. Compared: features at the first layer. Strong: kept with a measure above "
        "0.5. Control: the share kept where rows are permuted and decoders random.",
    )  # fmt: skip


def _counts(pairs: Sequence[Pair], seed: int) -> list[Any]:
    compared, kept = sum(len(pair.features[0]) for pair in pairs), sum(pair.kept for pair in pairs)
    born = sum(len(pair.features[1]) for pair in pairs) - kept
    share = interval_text(bootstrap_ratio(_flags(pairs), None, seed))
    control = sum(pair.control_kept for pair in pairs) / sum(pair.compared for pair in pairs)
    strong = sum(map(_strong, pairs))
    return [compared, kept, strong, compared - kept, born, kept / compared, share, control]


def _position_table(lines: Sequence[Line], layers: Sequence[Pair], seed: int) -> Table:
    rows = []
    for line in lines:
        lengths = [chain.length for chain in line.chains()]
        counts = _counts(_pairs_at(line, layers), seed)
        name = str(line.position)
        if line.sites[0].hookpoint is not None:
            name = f"{line.sites[0].hookpoint}, {name}"
        where = f"{line.sites[0].layer} to {line.sites[-1].layer}"
        ends = interval_text(bootstrap_ratio(lengths, None, seed), "{:.2f}")
        rows.append([name, where, counts[5], counts[6], fmean(lengths), ends, len(lengths)])
    return Table(
        "Persistence by position",
        ["position", "layers", "kept share", "95% CI", "mean length", "95% CI of length", "chains"],
        rows, "Length: layers through which a feature is followed.",
    )  # fmt: skip


def trajectory_tables(
    chains: Sequence[tuple[Line, Chain]], folders: Sequence[Path]
) -> Iterator[pa.Table]:
    """The trajectories of the chains of two layers or more, a line's at a time.

    A row is a chain and a sequence in which it is active at any layer: the mean activation over the
    sequence's rows, layer by layer from ``layer`` on; ``chain`` is its number in the table ``chains``.
    """
    for _, of_line in groupby(enumerate(chains), key=lambda one: id(one[1][0])):
        mine = [(number, chain) for number, (_, chain) in of_line if chain.length > 1]
        sites = {site for _, one in mine for site in one.sites}
        means = {site: found for site in sites if (found := read_means(folders, site)) is not None}
        usable = [(number, one) for number, one in mine if set(one.sites) <= means.keys()]
        columns_of = trajectories([one for _, one in usable], means)
        parts = [
            _trajectory_table(number, one, columns)
            for (number, one), columns in zip(usable, columns_of, strict=True)
        ]
        if parts:
            yield pa.concat_tables(parts)


def _trajectory_schema() -> pa.Schema:
    kinds = {
        "chain": pa.int32(), "layer": pa.int32(), "position": pa.string(), "sequence": pa.int64(),
        "activation": pa.list_(pa.float32()),
    }  # fmt: skip
    return pa.schema(list(kinds.items()))


def _trajectory_table(number: int, chain: Chain, columns: Mapping[str, Any]) -> pa.Table:
    activation, rows = columns["activation"], len(columns["sequence"])
    ends = np.arange(0, activation.size + 1, chain.length, dtype=np.int32)
    return pa.table(
        {
            "chain": np.full(rows, number, np.int32),
            "layer": np.full(rows, chain.sites[0].layer, np.int32),
            "position": [str(chain.sites[0].position)] * rows,
            "sequence": columns["sequence"],
            "activation": pa.ListArray.from_arrays(ends, activation.reshape(-1)),
        },
        schema=_trajectory_schema(),
    )
