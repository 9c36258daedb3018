"""What the model loses with the SAEs of a search's trials: an objective of the search.

As the phase ``loss`` measures it at the sites of an atlas, over validation texts of the store, at the end
of each trial. What does not depend on the SAE is measured once in each worker.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysae.activations import Store
from raysae.analysis.loss_sums import Row, figures_of, fixed_edits, of_text, sums_of
from raysae.analysis.spliced_model import SplicedModel, check_model
from raysae.analysis.splicing import Change, Edit, spliced
from raysae.analysis.subject import Subject
from raysae.analysis.token_batches import AUTO, Text, TokenBatch, texts_of
from raysae.atlas.library.files import AtlasFiles
from raysae.errors import UserError
from raysae.metrics import mean, registered
from raysae.records.commit import provenance
from raysae.records.run_files import RunFiles
from raysae.sae import SAE
from raysae.sites import Site

if TYPE_CHECKING:
    from raysae.analysis.scoring import Clean
    from raysae.config.source import SourceConfig

Key = tuple[Site, int]
"""A site and a seed."""
WITH_HEAD = ("ce_recovered", "kl_recovered", "ce_increase")
WITHOUT_HEAD = ("final_cosine_recovered",)
WITH_INTERVAL = ("ce_recovered", "final_cosine_recovered")
SPLIT = "validation"


@dataclass
class DownstreamLoss:
    """Measures trials' SAEs in the model; small, it opens model and texts when it first measures."""

    subject: Subject
    """The store, and what is known of its model."""
    sites: tuple[Site, ...]
    texts: int
    """Validation texts, at most."""
    wanted: tuple[str, ...] = ()
    """The metrics that the search asks for."""
    _open: "_Open | None" = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, store: Store, place: str, source: "SourceConfig", sites: Sequence[Site], texts: int,
        wanted: Sequence[str], seed: int,
    ) -> "DownstreamLoss":  # fmt: skip
        """That of a search on a store, which ``place`` opens; ``source`` says how its texts were read."""
        origin = provenance(store, sites[0])
        files = AtlasFiles(Path(place), {}, [], origin, source.model_dump(mode="json"))
        nowhere = RunFiles(Path(place))
        subject = Subject(place, nowhere, place, seed, given=files)
        return cls(subject, tuple(sites), texts, tuple(wanted))

    def opened(self, device: str) -> "DownstreamLoss":
        """The same for a worker's device."""
        return replace(self, subject=self.subject.sent(device), _open=None)

    def check(self) -> None:
        """Raise UserError unless the model is at hand, is the store's, and can give what is wanted."""
        check_model(self.subject)
        model = self._opened().model
        check_head(model.model.has_head, self.wanted, self.subject.source.model)
        for site in self.sites:
            self._check_follows(site)

    def figures(self, saes: Mapping[Key, SAE], alive: Callable[[], None]) -> dict[str, Any]:
        """The metrics of a trial: means over its SAEs, and intervals where there is one."""
        found = [self._figures(site, sae, alive) for (site, _), sae in saes.items()]
        if len(found) == 1:
            return found[0]
        return {
            name: mean([one.get(name) for one in found])
            for name in found[0]
            if not name.endswith(("_low", "_high"))
        }

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's weights."""
        model = self._opened().model.model.model
        return sum(weight.numel() * weight.element_size() for weight in model.parameters())

    def _opened(self) -> "_Open":
        if self._open is None:
            self._open = _Open.of(self.subject, self.sites, self.texts)
        return self._open

    def _check_follows(self, site: Site) -> None:
        """Raise UserError where no token is predicted at or after any row of the site."""
        opened = self._opened()
        model = opened.model.model
        if not model.has_head or not model.causal or any(map(opened.follows(site), opened.batches)):
            return
        raise UserError(
            f"sweep.objectives: nothing follows the rows of {site} in the {len(opened.texts)} "
            f"validation texts, so the model's loss ({', '.join(self.wanted)}) does not depend on them; "
            "sweep another position, such as all"
        )

    def _figures(self, site: Site, sae: SAE, alive: Callable[[], None]) -> dict[str, Any]:
        opened, rows = self._opened(), []
        for number in range(len(opened.batches)):
            rows += opened.rows(number, site, sae)
            alive()
        head = opened.model.model.has_head
        names = WITH_HEAD if head else WITHOUT_HEAD
        if not rows:
            return {**dict.fromkeys(names), "in_model_texts": 0}
        found = figures_of(rows, head, self.subject.seed)
        ends = [f"{n}_{end}" for n in names if n in WITH_INTERVAL for end in ("low", "high")]
        known = {name: found.get(name) for name in (*names, *ends)}
        return {**known, "in_model_texts": found["texts"]}


@dataclass
class _Open:
    """The model with the texts in batches, and what zero and mean ablation do to them."""

    model: SplicedModel
    texts: list[Text]
    batches: list[TokenBatch]
    fixed: Mapping[Site, Mapping[str, Edit]]
    patterns: list[str]
    known: dict[tuple[int, Site], list[Row]] = field(default_factory=dict)
    """Of each batch and site, a row for each text that has one: its sums without an SAE."""

    @classmethod
    def of(cls, subject: Subject, sites: Sequence[Site], most: int) -> "_Open":
        model = SplicedModel.of(subject, sites)
        texts = texts_of(subject, SPLIT, most, AUTO)
        fixed = {site: fixed_edits(subject.store, site) for site in sites}
        patterns = list(subject.source.used_patterns)
        return cls(model, texts, model.batches(texts), fixed, patterns)

    def follows(self, site: Site) -> Callable[[TokenBatch], bool]:
        """Whether a batch has a token of text that is predicted at or after a row of the site."""

        def found(batch: TokenBatch) -> bool:
            row, column = batch.places(site.position, self.patterns)
            after_BT = batch.text_BT.flip(1).int().cummax(dim=1).values.flip(1)
            return bool(after_BT[row, column].any())

        return found

    def rows(self, number: int, site: Site, sae: SAE) -> list[Row]:
        """The sums of the texts of a batch with the SAE in the model."""
        batch = self.batches[number]
        index = batch.places(site.position, self.patterns)
        if not len(index[0]):
            return []
        kept = self.model.block_before_all([site])
        clean = self.model.clean(batch, [] if kept is None else [kept])
        if (number, site) not in self.known:
            self.known[number, site] = self._sums(clean, site, self.fixed[site], alone=False)
        own = self._sums(clean, site, {"sae": spliced(sae)}, alone=True)
        return [{**a, **b} for a, b in zip(self.known[number, site], own, strict=True)]

    def _sums(
        self, clean: "Clean", site: Site, edits: Mapping[str, Edit], alone: bool
    ) -> list[Row]:
        """What edits do to each text of a batch that has rows; with ``alone`` only that."""
        index = clean.batch.places(site.position, self.patterns)
        kept = self.model.block_before_all([site])
        effects = {
            name: self.model.effect(clean, [Change(site.layer, index, edit, site.hookpoint)], kept)
            for name, edit in edits.items()
        }
        return [
            {**({} if alone else of_text(clean, row)), **sums_of(effects, row)}
            for row in sorted(set(index[0].tolist()))
        ]


def check_head(has_head: bool, wanted: Sequence[str], model: str) -> None:
    """Raise UserError when the model cannot give a metric that the search asks for."""
    possible = WITH_HEAD if has_head else WITHOUT_HEAD
    for name in wanted:
        if name not in possible and registered()[name].in_model:
            raise UserError(
                f"sweep.objectives: {name} of {model}, which has "
                f"{'a' if has_head else 'no'} language-model head; expected {' or '.join(possible)}"
            )
