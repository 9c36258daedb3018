"""Causal ablation: what the model loses when a feature is taken away, or set, or added."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from raysae.analysis.ablating import Ablator, Mode, Treatment
from raysae.analysis.ablation_figures import Figures, Row, compared, ranked, set_compared
from raysae.analysis.feature_choice import (
    Activity,
    activity_of,
    chosen,
    matched_controls,
    token_matcher,
)
from raysae.analysis.intervals import bootstrap_ratio, interval_text
from raysae.analysis.phase import Alive, Item, Phase, Result
from raysae.analysis.section import Section as Told
from raysae.analysis.section import Table
from raysae.analysis.spliced_model import SplicedModel, check_model, single_tokens
from raysae.analysis.subject import Subject
from raysae.analysis.token_batches import AUTO, continuation_of, texts_of
from raysae.config.section import Positive, Section
from raysae.errors import UserError
from raysae.records.tables import read_table, write_table
from raysae.sites import Site

ACTIVITY = "activity"
SHOWN, LARGEST = 40, 3
NOTES = [
    "A feature's decoder row times its change is added to the rows where it changes, so the SAE's error "
    "stays. ce, kl: change of the cross-entropy and KL(clean || changed), nats a token over all text "
    "tokens of the texts with a row at the site; accuracy: change of the fraction of answers right in "
    "every token (teacher-forced); ce_answer: of the answer's tokens.",
    "Controls: other features of the nearest densities, at most twice as high or low, drawn at random "
    "without repeats; chosen features without such controls are left out of comparisons. Intervals: 95%, "
    "bootstrap over texts. p: exchanging chosen and controls within matches, two-sided.",
]


class AblationSettings(Section):
    """Settings of the phase ``ablation``."""

    features: Positive = 16
    """Features of each site to ablate, at most."""
    given: list[int] | None = None
    """The features to ablate, by number, in place of the top ones."""
    by: str = ACTIVITY
    """What makes a top feature: ``activity`` (density times mean activation over training rows), or its
    point-biserial correlation with the tokens that match a pattern: a name such as ``numbers``, or a
    regular expression for a token's text."""
    controls: int = 3
    """Random features of equal density beside each; 0: none."""
    mode: Mode = "zero"
    """``zero``, ``mean`` (of the training rows), ``clamp`` (to ``value``), or ``steer``: add ``value``
    times the feature's decoder direction, of length 1, at every row of the site."""
    value: float = 0.0
    """The value of ``clamp`` and of ``steer``."""
    rank: Literal["ce", "kl", "accuracy", "ce_answer"] = "ce"
    """The effect by which features are ranked; ``ce`` where another is not defined."""
    tokens: tuple[str, ...] = ()
    """Tokens whose log-probability is followed besides, each one token of the model."""
    sequences: Positive = 100
    """Texts, at most: the first of the split."""
    split: Literal["train", "validation", "test"] = "validation"
    """The split whose texts the model reads."""
    continuation: str | None = AUTO
    """What follows each text, as ``loss.continuation``."""
    rows: Positive = 20_000
    """Training rows from which a feature's activity is measured, at most."""


class Ablation(Phase):
    """Takes features away one at a time and together, beside random features of equal density."""

    name: ClassVar[str] = "ablation"
    title: ClassVar[str] = "Causal ablation of features"
    Settings: ClassVar[type[Section]] = AblationSettings

    def check(self, subject: Subject, settings: AblationSettings) -> None:
        """Raise UserError when the model, its texts or the training rows are not at hand, or a setting
        does not fit the SAEs."""
        check_model(subject)
        subject.need_rows()
        continuation_of(subject.source, settings.continuation)
        if settings.by != ACTIVITY:
            token_matcher(settings.by, str)
        if settings.mode == "steer" and not settings.value:
            raise UserError("ablation.value is 0: steering by nothing; give the length to be added")
        if settings.controls < 0:
            raise UserError(f"ablation.controls is {settings.controls}; expected 0 or more")
        for site in subject.sites if settings.given is not None else []:
            _check_given(settings.given or [], site, subject.atlas[site].config.d_sae)

    def items(self, subject: Subject, settings: AblationSettings) -> list[Item]:
        """A site each."""
        return [Item(site.folder.replace("/", ","), (site,)) for site in subject.sites]

    def work(
        self, subject: Subject, settings: AblationSettings, item: Item, folder: Path, alive: Alive
    ) -> None:
        """Write ``features.parquet``, a row a feature, and ``site.parquet``, the site's comparison."""
        site = item.sites[0]
        tokens = single_tokens(subject, settings.tokens, "ablation.tokens")
        model = SplicedModel.of(subject, item.sites, tokens)
        texts = texts_of(subject, settings.split, settings.sequences, settings.continuation)
        sae = subject.atlas[site]
        activity = _activity(subject, settings, site, alive)
        features = _chosen(settings, activity)
        if not features:
            write_table(folder / "site.parquet", [{**_columns(site), "features": 0}])
            return
        controls = matched_controls(activity, features, settings.controls, subject.seed)
        groups, sets = _groups(features, controls, settings.controls)
        mean = activity.mean if settings.mode == "mean" else None
        treatment = Treatment(settings.mode, settings.value, mean)
        ablator = Ablator(model, site, sae, list(subject.source.used_patterns), treatment)
        clean, effects = ablator.run(texts, [[group] for group in groups], alive)
        figures = Figures(clean, effects, model.model.has_head, subject.seed)
        together = Figures(*ablator.run(texts, sets, alive), model.model.has_head, subject.seed)
        rows = _rows(figures, groups, features, controls, activity, settings)
        place = {feature: number for number, feature in enumerate(groups)}
        matches = {place[f]: [place[c] for c in controls[f]] for f in features}
        row = {
            **_columns(site), "features": len(features), **figures.clean(),
            **compared(figures, [place[f] for f in features], matches),
            **set_compared(together, list(range(2, len(sets)))),
            **_densities(activity, controls),
        }  # fmt: skip
        write_table(folder / "features.parquet", [{**_columns(site), **r} for r in rows])
        write_table(folder / "site.parquet", [row])

    def collect(
        self, subject: Subject, settings: AblationSettings, folders: Mapping[Item, Path]
    ) -> Result:
        """All sites' tables, and what they say."""
        sites = [row for folder in folders.values() for row in read_table(folder / "site.parquet")]
        files = [folder / "features.parquet" for folder in folders.values()]
        features = [row for file in files if file.is_file() for row in read_table(file)]
        return _result(sites, features, settings, subject.seed)

    def draw(self, result: Result, settings: AblationSettings, source: str, folder: Path) -> None:
        """Effects against densities, chosen features and controls."""
        from raysae.report.drawing import CHOICE_COLOUR, new_figure, save

        rows = result.tables["features"]
        measure = _measure(rows, settings.rank)
        if not rows:
            return
        figure, axes = new_figure(6.8, 4.4, source)
        for kind, colour, mark in (("control", "#98a2b3", "."), ("chosen", CHOICE_COLOUR, "x")):
            mine = [row for row in rows if row["kind"] == kind and row[measure] is not None]
            axes.scatter(
                [row["density"] for row in mine], [row[measure] for row in mine], s=18, marker=mark,
                color=colour, label=f"{kind} ({len(mine):,})", alpha=0.7,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="density (fraction of training rows)", ylabel=AXES[measure])
        axes.set_title(f"What {NAMES[settings.mode]} one feature does")
        axes.legend(frameon=False, fontsize=8)
        save(figure, folder / "effects.png")


AXES = {
    "ce": "change of CE (nats a token)", "kl": "KL(clean || changed) (nats a token)",
    "accuracy": "change of the answers' accuracy", "away": "1 - cosine of the final embedding",
    "ce_answer": "change of the answer's CE (nats a token)",
}  # fmt: skip
NAMES = {"zero": "zeroing", "mean": "averaging", "clamp": "clamping", "steer": "steering by"}


def _check_given(given: Sequence[int], site: Site, d_sae: int) -> None:
    beyond = [feature for feature in given if not 0 <= feature < d_sae]
    if beyond or not given:
        what = beyond[0] if beyond else "nothing"
        raise UserError(f"ablation.given: {what} is no feature of {site}; it has 0 to {d_sae - 1}")


def _activity(subject: Subject, settings: AblationSettings, site: Site, alive: Alive) -> Activity:
    is_token = None
    if settings.by != ACTIVITY:
        is_token = token_matcher(settings.by, subject.transformer.tokenizer.decode)
    return activity_of(subject.store, site, subject.atlas[site], settings.rows, is_token, alive)


def _chosen(settings: AblationSettings, activity: Activity) -> list[int]:
    if settings.given is not None:
        return list(dict.fromkeys(settings.given))
    return chosen(activity, settings.features, settings.by != ACTIVITY)


def _groups(
    features: Sequence[int], controls: Mapping[int, Sequence[int]], each: int
) -> tuple[list[int], list[list[int]]]:
    """All features that are treated alone, and the sets: the chosen ones, those of them that have all
    their controls, and of these controls the first of each match, the second, and so on."""
    groups = [*features, *(other for feature in features for other in controls[feature])]
    matched = [feature for feature in features if each and len(controls[feature]) == each]
    others = [[controls[feature][n] for feature in matched] for n in range(each)]
    return groups, [list(features), *([matched, *others] if matched else [])]


def _densities(activity: Activity, controls: Mapping[int, Sequence[int]]) -> Row:
    """The mean density of the features that have controls, and of these."""
    pairs = [(one, other) for one, others in controls.items() for other in others]
    if not pairs:
        return {}
    ours, theirs = (activity.density[list(some)].mean() for some in zip(*pairs, strict=True))
    return {"density_matched": float(ours), "density_controls": float(theirs)}


def _columns(site: Site) -> Row:
    return {**site.columns, "position": str(site.position)}


def _rows(
    figures: Figures, groups: Sequence[int], features: Sequence[int],
    controls: Mapping[int, Sequence[int]], activity: Activity, settings: AblationSettings,
) -> list[Row]:  # fmt: skip
    of = {other: feature for feature in features for other in controls[feature]}
    rows = []
    for number, feature in enumerate(groups):
        row: Row = {
            "feature": feature, "kind": "control" if feature in of else "chosen",
            "matched_to": of.get(feature), "density": float(activity.density[feature]),
            "mean_activation": float(activity.mean[feature]),
            "correlation": float(activity.correlation[feature]) if settings.by != ACTIVITY else None,
            **figures.row(number), **_followed(figures, number, settings.tokens),
        }  # fmt: skip
        rows.append(row)
    measure = settings.rank if settings.rank in figures.measures else figures.measures[0]
    return ranked(rows, measure)


def _followed(figures: Figures, group: int, words: Sequence[str]) -> Row:
    """The mean change of the chosen tokens' log-probability, over all text tokens."""
    total = max(float(figures.texts.tokens.sum()), 1.0)
    sums = figures.effects.tokens[:, group].sum(axis=0) / total
    return {f"logprob_{word}": float(value) for word, value in zip(words, sums, strict=True)}


def _measure(rows: Sequence[Mapping[str, Any]], wanted: str) -> str:
    there = [m for m in (wanted, "ce", "away") if any(row.get(m) is not None for row in rows)]
    return there[0] if there else wanted


def _result(
    sites: list[Row], features: list[Row], settings: AblationSettings, seed: int
) -> Result:  # fmt: skip
    measure = _measure(features, settings.rank)
    told = "accuracy" if any(row.get("accuracy_set") is not None for row in sites) else measure
    figures: dict[str, float | None] = {}
    for name in (f"{told}_set", f"{told}_set_difference", f"{measure}_difference", f"{measure}_p"):
        known = [row[name] for row in sites if row.get(name) is not None]
        figures[f"{name}_mean"] = float(np.mean(known)) if known else None
    brief = f"{len(features):,} features at {len(sites)} sites"
    known = [row for row in sites if row.get(f"{told}_set_difference") is not None]
    sentences = ["No site has features and controls to compare."]
    if known:
        overall, counts = _over_sites(known, told, seed)
        figures |= counts
        largest = _most(known, f"{told}_set_difference", LARGEST)
        sentences = [overall, *(_sentence(row, told) for row in largest)]
    section = Told(sentences, _tables(sites, features, measure, told), NOTES)
    return Result(figures, section, {"features": features, "sites": sites}, brief)


def _over_sites(rows: Sequence[Row], told: str, seed: int) -> tuple[str, dict[str, float | None]]:
    """The mean of the sites' differences from their controls, and at how many sites it is not 0."""
    name = f"{told}_set_difference"
    values = [row[name] for row in rows]
    low, high = bootstrap_ratio(values, None, seed)
    ends = [(row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
    apart = sum(least is not None and least * most > 0 for least, most in ends)
    said = (
        f"Over {len(rows)} sites the chosen features of a site together change {told} by "
        f"{np.mean(values):.3f} more than sets of their controls do (mean; 95% CI "
        f"{interval_text((low, high))}, bootstrap over sites); at {apart} of {len(rows)} sites the "
        f"difference's interval leaves 0 out. The largest {min(len(rows), LARGEST)}:"
    )
    return said, {f"{name}_mean_low": low, f"{name}_mean_high": high, "sites_apart": float(apart)}


def _most(rows: Sequence[Row], name: str, most: int) -> list[Row]:
    return sorted(rows, key=lambda row: -abs(row.get(name) or 0.0))[:most]


def _sentence(row: Row, told: str) -> str:
    low, high = row[f"{told}_set_difference_low"], row[f"{told}_set_difference_high"]
    sure = "more" if low is not None and low * high > 0 else "not surely more"
    return (
        f"Layer {row['layer']}, position {row['position']}: its {row['features']} chosen features "
        f"together change {told} by {row[f'{told}_set']:.3f} over {row['texts']} texts; those that have "
        f"controls (mean density {row['density_matched']:.3f}) by {row[f'{told}_set_matched']:.3f}, sets "
        f"of controls ({row['density_controls']:.3f}) by {row[f'{told}_set_controls']:.3f}; the "
        f"difference {row[f'{told}_set_difference']:.3f} [{low:.3f}, {high:.3f}] is {sure} than chance "
        f"over texts; one at a time p = {row[f'{told}_p']:.4f} ({row['pairs']} matches)."
    )


def _tables(sites: Sequence[Row], features: Sequence[Row], measure: str, told: str) -> list[Table]:
    places = [n for n in ("hookpoint", "layer", "position") if any(n in row for row in sites)]
    columns = [
        *places, "features", "texts", "answers", "accuracy_clean", f"{told}_set", f"{told}_set_low",
        f"{told}_set_high", f"{told}_set_matched", f"{told}_set_controls", f"{told}_set_difference",
        f"{measure}_difference", f"{measure}_low", f"{measure}_high", f"{measure}_p",
    ]  # fmt: skip
    columns = list(dict.fromkeys(columns))
    top = _most([row for row in features if row["kind"] == "chosen"], measure, SHOWN)
    single = [
        *places, "feature", "rank", "density", "correlation", "texts_changed", measure,
        f"{measure}_low", f"{measure}_high", "kl", "accuracy",
    ]  # fmt: skip
    single = [n for n in dict.fromkeys(single) if any(row.get(n) is not None for row in top)]
    shown = _most(sites, f"{told}_set", SHOWN)
    return [
        Table(
            "Chosen features together and one at a time, by site", columns, _cells(shown, columns)
        ),
        Table("Features of the largest effect", single, _cells(top, single)),
    ]


def _cells(rows: Sequence[Row], columns: Sequence[str]) -> list[list[Any]]:
    return [[row.get(name) for name in columns] for row in rows]
