"""The downstream loss: what the model loses with an SAE's reconstruction in the place of activations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from raysae.analysis.loss_sums import Places, Row, figures_of, rows_of_batch
from raysae.analysis.phase import Alive, Item, Phase, Result
from raysae.analysis.section import Section as Told
from raysae.analysis.section import Table
from raysae.analysis.spliced_model import SplicedModel, check_model
from raysae.analysis.subject import Subject
from raysae.analysis.token_batches import AUTO, continuation_of, texts_of
from raysae.config.section import Positive, Section
from raysae.metrics import registered
from raysae.records.tables import read_table, write_table
from raysae.sites import Site

SITES_TOGETHER = 8
"""Sites of an item, which share the clean passes."""
SHOWN = 60
"""Sites of the page's table, at most: those that lose the most."""
DEFINITIONS = [
    "CE: cross-entropy of the next token in nats a token, over all tokens of the texts that have a row "
    "at the site and over what follows them; ce_recovered = (CE_zero − CE_sae) / (CE_zero − CE_clean), "
    "ce_loss_score of SAEBench and SAELens; KL(clean || changed); kl_recovered = (KL_zero − KL_sae) / "
    "KL_zero, their kl_div_score. A token counts by the place that predicts it, as there.",
    "What differs from SAEBench and SAELens: the SAE, the zero and the mean replace the rows that the "
    "site has and no others (they replace every token, and zero the special ones too); places that are "
    "special tokens are counted apart, always; the end of a text predicts nothing; a model that is not "
    "causal predicts each place's own token, unmasked. Mean ablation: the mean of the site's rows in "
    "the store. Rows are not rounded to the store's number format, and rows that the store left out as "
    "too large are replaced too.",
    "Intervals: 95%, bootstrap over texts. ce_recovered is undefined where zero ablation changes "
    "nothing, as at the last token of texts with nothing after it. with_error_term: the KL when the "
    "SAE's error is added back, which is rounding.",
]


class LossSettings(Section):
    """Settings of the phase ``loss``."""

    sequences: Positive = 50
    """Texts, at most: the first of the split."""
    split: Literal["train", "validation", "test"] = "validation"
    """The split whose texts the model reads."""
    continuation: str | None = AUTO
    """What follows each text: a template over the data set's columns, such as ``{answer}``; its tokens
    are the answer. ``auto``: the answer of the pocket problems' prompts, and nothing after other texts;
    null: nothing. Without it the answer is what follows ``####`` in a text."""


class Loss(Phase):
    """Splices every site's SAE into the model, alone and with all other layers of its position."""

    name: ClassVar[str] = "loss"
    title: ClassVar[str] = "Downstream loss"
    quick: ClassVar[bool] = True
    Settings: ClassVar[type[Section]] = LossSettings

    def check(self, subject: Subject, settings: LossSettings) -> None:
        """Raise UserError when the model, its texts, or what follows them are not at hand."""
        check_model(subject)
        continuation_of(subject.source, settings.continuation)

    def items(self, subject: Subject, settings: LossSettings) -> list[Item]:
        """Some sites of one position, and all of its layers at once."""
        found = []
        for key, sites in by_position(subject.sites).items():
            for start in range(0, len(sites), SITES_TOGETHER):
                some = tuple(sites[start : start + SITES_TOGETHER])
                found.append(Item(f"{key},layer={some[0].layer:02d}", some))
            if len(sites) > 1:
                found.append(Item(f"{key},together", tuple(sites)))
        return found

    def work(
        self, subject: Subject, settings: LossSettings, item: Item, folder: Path, alive: Alive
    ) -> None:
        """Write ``texts.parquet``: the sums of each text at each site of the item, or at all at once."""
        model = SplicedModel.of(subject, item.sites)
        texts = texts_of(subject, settings.split, settings.sequences, settings.continuation)
        together = item.key.endswith("together")
        places = [Places(item.sites)] if together else [Places((site,)) for site in item.sites]
        blocks = {model.block_before_all(place.sites) for place in places}
        rows: list[Row] = []
        for number, batch in enumerate(model.batches(texts)):
            clean = model.clean(batch, [block for block in blocks if block is not None])
            for place in places:
                rows += rows_of_batch(subject, model, clean, place, exact=number == 0)
                alive()
        for row in rows:
            row["head"] = model.model.has_head
        if rows:
            write_table(folder / "texts.parquet", rows)

    def collect(
        self, subject: Subject, settings: LossSettings, folders: Mapping[Item, Path]
    ) -> Result:
        """The figures of every site and of every position's layers at once."""
        sites: list[Row] = []
        together: list[Row] = []
        for folder in folders.values():
            file = folder / "texts.parquet"
            rows = read_table(file) if file.is_file() else []
            for columns, some in _by_place(rows):
                (together if columns["layer"] < 0 else sites).append(
                    {**columns, **_figures(some, subject.seed)}
                )
        return _result(sites, together)

    def draw(self, result: Result, settings: Any, source: str, folder: Path) -> None:
        """A heatmap of what is recovered, by layer and position."""
        from raysae.report.atlas_rows import by_hookpoint
        from raysae.report.heatmaps import heatmap

        rows = [dict(row) for row in result.tables["sites"]]
        metric = registered()[_recovered(rows)]
        for hookpoint, some in by_hookpoint(rows).items():
            title = f"{metric.axis} with the SAE in the model"
            named = title if hookpoint is None else f"{title}, {hookpoint}"
            file = "recovered" if hookpoint is None else f"recovered_{hookpoint}"
            heatmap(some, metric, named, source, folder / f"{file}.png")


def by_position(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """The sites of each position (and hookpoint), by a name for a folder."""
    found: dict[str, list[Site]] = {}
    for site in sites:
        first = "" if site.hookpoint is None else f"hookpoint={site.hookpoint},"
        found.setdefault(f"{first}position={site.position}", []).append(site)
    return found


def _by_place(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        key = row["layer"], row["position"], row.get("hookpoint")
        found.setdefault(key, []).append(row)
    names = ("layer", "position", "hookpoint")
    return [
        ({n: v for n, v in zip(names, key, strict=True) if v is not None}, some)
        for key, some in found.items()
    ]


def _figures(rows: Sequence[Row], seed: int) -> Row:
    numbers = [{k: v for k, v in row.items() if k not in ("layer", "sequence")} for row in rows]
    checked = [
        row["kl_error"] + row["away_error"] for row in rows if row.get("kl_error") is not None
    ]
    sums = [{k: v or 0.0 for k, v in row.items() if not isinstance(v, str)} for row in numbers]
    found = figures_of(sums, bool(rows[0]["head"]), seed)
    return {**found, "with_error_term": max(checked, default=None)}


def _recovered(rows: Sequence[Row]) -> str:
    return (
        "ce_recovered" if any("ce_recovered" in row for row in rows) else "final_cosine_recovered"
    )


def _result(sites: list[Row], together: list[Row]) -> Result:
    name = _recovered(sites)
    known = [row[name] for row in sites if row.get(name) is not None]
    mean = sum(known) / len(known) if known else None
    figures = {f"{name}_mean": mean, f"{name}_worst": min(known, default=None)}
    for row in together:
        figures[f"{name}_together_{row['position']}"] = row.get(name)
    exact = [row["with_error_term"] for row in sites if row["with_error_term"] is not None]
    figures["with_error_term"] = max(exact, default=None)
    head = name == "ce_recovered"
    brief = (
        "undefined at every site"
        if mean is None
        else f"{name} {mean:.4f}, mean of {len(known)} sites"
    )
    section = Told(
        _sentences(sites, together, name, mean), _tables(sites, together, head), _notes(head)
    )
    tables = {"sites": sites, "together": together}
    return Result(figures, section, tables, brief)


def _sentences(
    sites: Sequence[Row], together: Sequence[Row], name: str, mean: float | None
) -> list[str]:
    known = [row for row in sites if row.get(name) is not None]
    most = max((row["texts"] for row in sites), default=0)
    if mean is None:
        return [f"{name} is undefined at all {len(sites)} sites ({most} texts)."]
    worst = min(known, key=lambda row: row[name])
    said = [
        f"With its SAE in the model a site keeps {mean:.3f} of what zero ablation takes away ({name}, "
        f"mean of {len(known)} of {len(sites)} sites, up to {most} texts); the least at layer "
        f"{worst['layer']}, position {worst['position']}: {_with_interval(worst, name)}."
    ]
    for row in together:
        if row.get(name) is not None:
            said.append(
                f"All layers of position {row['position']} at once: {_with_interval(row, name)} "
                f"({row['texts']} texts, {row['tokens']:,} tokens)."
            )
    return said


def _with_interval(row: Row, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{row[name]:.3f}{interval}"


SHOWN_COLUMNS = {
    True: (
        "texts", "tokens", "ce_clean", "ce_sae", "ce_zero", "ce_mean", "ce_recovered",
        "ce_recovered_low", "ce_recovered_high", "kl_sae", "kl_zero", "answers", "accuracy_clean",
        "accuracy_sae", "accuracy_zero", "ce_answer_clean", "ce_answer_sae",
        "special_tokens", "ce_special_clean", "ce_special_sae",
    ),
    False: (
        "texts", "tokens", "final_cosine_sae", "final_cosine_zero", "final_cosine_mean",
        "final_cosine_recovered", "final_cosine_recovered_low", "final_cosine_recovered_high",
    ),
}  # fmt: skip


def _tables(sites: Sequence[Row], together: Sequence[Row], head: bool) -> list[Table]:
    name = "ce_recovered" if head else "final_cosine_recovered"
    ordered = sorted(sites, key=lambda row: math.inf if row.get(name) is None else row[name])
    found = [_table("By site", ordered[:SHOWN], head)]
    if together:
        found.append(_table("All layers of a position at once", together, head))
    return found


def _table(title: str, rows: Sequence[Row], head: bool) -> Table:
    columns = [name for name in SHOWN_COLUMNS[head] if any(row.get(name) for row in rows)]
    places = [
        name for name in ("hookpoint", "layer", "position") if any(name in row for row in rows)
    ]
    cells = [
        [
            *("all" if row.get(p) == -1 else row.get(p) for p in places),
            *(row.get(c) for c in columns),
        ]
        for row in rows
    ]
    note = "The lowest first; all sites are in sites.parquet. CE and KL in nats a token."
    return Table(title, [*places, *columns], cells, note)


def _notes(head: bool) -> list[str]:
    if head:
        return DEFINITIONS
    return [
        "The model has no language-model head, so no CE: final_cosine is the cosine of its final "
        "embedding with the clean one, a mean over text tokens; final_cosine_recovered = "
        "(cosine_sae − cosine_zero) / (1 − cosine_zero). Neither SAEBench nor SAELens has it.",
        *DEFINITIONS[2:],
    ]
