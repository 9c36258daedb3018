"""Labels of features: where each is active, how strongly, on what, and what it does; a site an item."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.analysis.labelling import story
from raysae.analysis.labelling.describer import Described, Describing
from raysae.analysis.labelling.effects import Effects, read_effects
from raysae.analysis.labelling.endpoint import Endpoint, check_endpoint
from raysae.analysis.labelling.settings import LabelsSettings
from raysae.analysis.labelling.site import SiteLabels
from raysae.analysis.labelling.site_tables import (
    attributes_of,
    coherence_of,
    contexts_of,
    features_of,
    nullable,
)
from raysae.analysis.phase import Alive, Item, Phase, Result
from raysae.analysis.subject import Subject
from raysae.errors import UserError
from raysae.storage.files import read_json, write_json

SUMMARY = "summary.json"
TABLES = ("features", "attributes", "contexts")


@dataclass(frozen=True)
class LabelsResult(Result):
    """The result, with what its plots show."""

    overview: story.Overview = field(default_factory=story.Overview)


class Labels(Phase):
    """What every feature of every site is active on, from the rows of the store."""

    name = "labels"
    title = "Labels of features"
    quick = True
    uses = ("ablation",)
    Settings = LabelsSettings

    def check(self, subject: Subject, settings: LabelsSettings) -> None:
        """Refuse a subject without rows in the splits, unknown attributes, half an endpoint."""
        subject.need_rows()
        for site in subject.sites:
            rows = subject.store.entry(site).rows
            if not any(getattr(rows, split) for split in settings.splits):
                raise UserError(
                    f"labels.splits: {subject.store.place} has no {' or '.join(settings.splits)} rows of "
                    f"{site}; name a split that it has"
                )
        if settings.attributes:
            from raysae.analysis.attributes import check_names

            check_names(subject, settings.attributes, "labels.attributes")
        if settings.describer_url is not None:
            check_endpoint(settings.describer_url, settings.describer_model)
            if not subject.store.manifest.sequences:
                raise UserError(
                    f"labels.describer_url: {subject.store.place} holds no texts, so there is nothing to "
                    "describe; leave it out"
                )

    def items(self, subject: Subject, settings: LabelsSettings) -> list[Item]:
        """An item a site."""
        return [Item(site.folder.replace("/", ","), (site,)) for site in subject.sites]

    def work(
        self, subject: Subject, settings: LabelsSettings, item: Item, folder: Path, alive: Alive
    ) -> None:
        """Label the features of a site: a table of features, of attributes and of contexts."""
        labels = SiteLabels(subject, settings, item.sites[0], alive)
        labels.read()
        coherent = coherence_of(labels)
        features, notes = features_of(labels, coherent)
        described, failed = _described(labels, settings, alive)
        features = with_descriptions(features, described)
        pq.write_table(features, folder / "features.parquet")
        pq.write_table(attributes_of(labels), folder / "attributes.parquet")
        alive()
        pq.write_table(contexts_of(labels), folder / "contexts.parquet")
        summary = story.summary(labels, coherent, notes | {"describer": failed})
        write_json(folder / SUMMARY, summary)

    def collect(
        self, subject: Subject, settings: LabelsSettings, folders: Mapping[Item, Path]
    ) -> Result:
        """The tables of all sites one after another, with the effects that the ablation found."""
        effects = read_effects(subject.files)
        places = [folders[item] for item in self.items(subject, settings) if item in folders]
        overview = story.Overview()
        for place in places:
            overview.add(_features(place, effects), read_json(place / SUMMARY))

        def table(name: str) -> Iterator[pa.Table]:
            for place in places:
                if name == "features":
                    yield _features(place, effects)
                else:
                    yield pq.read_table(place / f"{name}.parquet", partitioning=None)

        return LabelsResult(
            figures=overview.figures(), section=story.section(overview, settings, effects),
            large={name: lambda name=name: table(name) for name in TABLES},  # type: ignore[misc]
            brief=overview.brief(), overview=overview,
        )  # fmt: skip

    def draw(self, result: Result, settings: LabelsSettings, source: str, folder: Path) -> None:
        """The densities of features, and their coherence beside its control."""
        from raysae.analysis.labelling.plots import draw_coherence, draw_densities

        assert isinstance(result, LabelsResult)
        draw_densities(result.overview, source, folder / "density.png")
        if result.overview.coherence.size:
            draw_coherence(result.overview, source, folder / "coherence.png")


def _features(place: Path, effects: Effects) -> pa.Table:
    return effects.beside(pq.read_table(place / "features.parquet", partitioning=None))


def _described(
    labels: SiteLabels, settings: LabelsSettings, alive: Alive
) -> tuple[dict[int, Described], str]:
    """The descriptions, where an endpoint is named; why it failed, or nothing."""
    if settings.describer_url is None or labels.texts is None:
        return {}, ""
    endpoint = Endpoint(
        settings.describer_url, settings.describer_model or "", settings.describer_timeout,
        settings.describer_retries,
    )  # fmt: skip
    return Describing(labels, endpoint, alive).described()


def with_descriptions(features: pa.Table, described: Mapping[int, Described]) -> pa.Table:
    """The table of features with what the endpoint made of them; null where there is nothing."""
    import numpy as np

    found = [described.get(number) for number in range(len(features))]
    texts = [one and one.description for one in found]
    features = features.append_column("description", pa.array(texts, pa.string()))
    for name in ("score", "low", "high", "control"):
        values = np.array([np.nan if one is None else getattr(one, name) for one in found])
        features = features.append_column(f"detection_{name}", nullable(values.astype(np.float64)))
    counts = [one and one.n for one in found]
    return features.append_column("detection_n", pa.array(counts, pa.int64()))
