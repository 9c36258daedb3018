"""Phase ``detection``: whether a label of a sequence can be read from SAE features and from what else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from raysae.analysis.attributes import MODEL_CORRECT, NEW_TOKENS
from raysae.analysis.detecting.examples import Examples, Wanted, examples_of, label_name
from raysae.analysis.detecting.figures import write_item, write_nothing
from raysae.analysis.detecting.inputs import (
    TRAJECTORIES,
    Prober,
    TooFewRows,
    along_trajectories,
    at_site,
    baselines,
    trajectories_file,
)
from raysae.analysis.detecting.outcome import BASELINE_ITEM, outcome
from raysae.analysis.detecting.plots import draw_areas, draw_reliability
from raysae.analysis.phase import Alive, Item, Phase, Result
from raysae.analysis.subject import Subject
from raysae.config.section import PositionKey, Positive, Section
from raysae.console.board import console
from raysae.errors import UserError
from raysae.sites import Site
from raysae.storage.files import sha256_of


class DetectionSettings(Section):
    """What is predicted, from what."""

    label: str | None = None
    """A column of the data set or an attribute of its texts, such as ``is_correct``, ``steps``,
    ``last_operator`` or ``text_tokens``; numbers are split at their median. Null: ``model_correct``,
    whether the model answers the text's question right, where there are questions and answers."""
    positive: str | None = None
    """Of a label of several texts, the one that is the positive class; null: the commonest."""
    sequences: Annotated[int, Field(ge=100, le=20_000)] = 2000
    """Sequences that are labelled, at most, drawn by the seed."""
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation")
    """The splits that they are from. The SAEs saw no label."""
    layers: tuple[int, ...] | None = None
    """Layers whose sites are used, such as [2, 3]; null: all."""
    positions: tuple[PositionKey, ...] | None = None
    """Positions whose sites are used, such as [-1]; null: all."""
    features: Positive = 512
    """Columns that a probe sees, at most: those with the most variance on the training part."""
    permutations: Annotated[int, Field(ge=2, le=1000)] = 20
    """Times that the labels are permuted for each kind of input, at least, for the control; the sites
    share them."""
    bootstraps: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Draws for the intervals."""
    answer_tokens: Positive = NEW_TOKENS
    """Tokens of an answer of the model, at most, for ``model_correct``."""


class Detection(Phase):
    """Probes on features, activations, trajectories and baselines, each with its controls."""

    name = "detection"
    title = "Detection: what tells a sequence's label"
    uses = ("tracking",)
    Settings = DetectionSettings

    def check(self, subject: Subject, settings: DetectionSettings) -> None:
        """A label with enough sequences of two classes is needed, and the rows of the sites.

        For ``model_correct`` the model answers the questions here, the first time: what it gets right
        decides whether there is anything to detect.
        """
        subject.need_rows()
        if not self._sites(subject, settings):
            raise UserError(
                f"{subject.place}: no site of the atlas is at detection.layers {settings.layers} and "
                f"detection.positions {settings.positions}; it has {', '.join(map(str, subject.sites))}"
            )
        if label_name(subject, settings.label) == MODEL_CORRECT:
            subject.need_model()
            console.print("Detection: whether the model answers right; its answers are kept")
        self._examples(subject, settings)

    def items(self, subject: Subject, settings: DetectionSettings) -> list[Item]:
        """The baselines, each site, and the trajectories where the phase ``tracking`` left them."""
        sites = self._sites(subject, settings)
        found = [Item(BASELINE_ITEM, ()), *(Item(_key(site), (site,)) for site in sites)]
        file = trajectories_file(subject)
        if not file.is_file():
            subject.files.fetch(file.parent)
        if file.is_file():
            found.append(Item(f"{TRAJECTORIES},{sha256_of(file)[:12]}", tuple(sites)))
        return found

    def work(
        self, subject: Subject, settings: DetectionSettings, item: Item, folder: Path, alive: Alive
    ) -> None:
        """Fit the probes of an item and write what they predict, and its figures."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):  # sums in one order, whatever the worker's CPUs
            self._work(subject, settings, item, folder, alive)

    def _work(
        self, subject: Subject, settings: DetectionSettings, item: Item, folder: Path, alive: Alive
    ) -> None:
        examples = self._examples(subject, settings, alive)
        sharing = len(self._sites(subject, settings)) if len(item.sites) == 1 else 1
        permutations = -(-settings.permutations // sharing)
        prober = Prober(examples, permutations, subject.seed, item.key, alive)
        where: dict[str, Any] = {"layer": None, "position": None, "hookpoint": None}
        try:
            if item.key == BASELINE_ITEM:
                found = baselines(subject, examples, prober, settings.splits, settings.features)
            elif item.key.startswith(TRAJECTORIES):
                file = trajectories_file(subject)
                found = along_trajectories(file, examples, prober, settings.features)
            else:
                site = item.sites[0]
                where |= {**site.columns, "position": str(site.position)}
                found = at_site(subject, site, examples, prober, settings.splits, settings.features)
        except TooFewRows as error:  # every time: it is an outcome, and not a failure
            write_nothing(folder, str(error))
            return
        write_item(folder, found, examples, where, settings.bootstraps, subject.seed)

    def collect(
        self, subject: Subject, settings: DetectionSettings, folders: Mapping[Item, Path]
    ) -> Result:
        """The rows of all items, and what they say of each kind of input."""
        examples = self._examples(subject, settings)
        return outcome(examples, settings, folders, subject.seed)

    def draw(self, result: Result, settings: DetectionSettings, source: str, folder: Path) -> None:
        """AUROC by layer and input, and how predicted probabilities compare with what came."""
        draw_areas(result.tables["detection"], source, folder)
        draw_reliability(result.tables["reliability"], source, folder)

    def _sites(self, subject: Subject, settings: DetectionSettings) -> list[Site]:
        return [
            site
            for site in subject.sites
            if settings.layers is None or site.layer in settings.layers
            if settings.positions is None or site.position in settings.positions
        ]

    def _examples(
        self, subject: Subject, settings: DetectionSettings, alive: Alive = lambda: None
    ) -> Examples:
        label = label_name(subject, settings.label)
        wanted = Wanted(
            label, settings.positive, settings.splits, settings.sequences, settings.answer_tokens
        )
        return examples_of(subject, wanted, alive)


def _key(site: Site) -> str:
    return site.folder.replace("/", ",")
