"""Stability: how far another seed, or the next layer, has the same features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from raysae.analysis.agreement import Dictionary, compare, save
from raysae.analysis.agreement_result import draw, summary
from raysae.analysis.chains import neighbours
from raysae.analysis.phase import Alive, Item, Phase, Result
from raysae.analysis.results import sae_digest
from raysae.analysis.site_latents import row_parts
from raysae.analysis.subject import Subject
from raysae.atlas.library.encoding import DENSE_VALUES
from raysae.config.section import Positive, Section
from raysae.errors import UserError
from raysae.sae import SAE
from raysae.sites import Site

SEEDS, LAYERS = "seeds", "layers"


class StabilitySettings(Section):
    """How dictionaries are compared."""

    between: tuple[Literal["seeds", "layers"], ...] = ("seeds", "layers")
    """What is compared: the seeds of a site, neighbouring layers of a position."""
    universal: Annotated[float, Field(gt=0, le=1)] = 0.9
    """A feature is universal when its match in every other seed (or in the next layer) has at least this
    cosine."""
    features: Positive = 1024
    """Live features that are matched one by one, at most: the densest. Time grows with the cube."""
    rows: Positive = 20_000
    """Validation rows that tell which features are live, at most."""
    draws: Positive = 10
    """Random dictionaries that tell what chance gives."""


class Stability(Phase):
    """Features matched by their decoder rows between seeds, and between neighbouring layers."""

    name = "stability"
    title = "Stability: the same features from another seed, and in the next layer"
    Settings = StabilitySettings

    def check(self, subject: Subject, settings: StabilitySettings) -> None:
        """Validation rows are needed, and for each kind of comparison something to compare."""
        subject.need_rows()
        if not settings.between:
            raise UserError("stability.between names nothing; give seeds, layers, or both")
        if SEEDS in settings.between and not self._sites_with_seeds(subject):
            raise UserError(
                f"{subject.place}: has one seed a site; train with atlas.seeds_per_site=2 or more, or "
                "compare layers alone with stability.between=[layers]"
            )
        if settings.between == (LAYERS,) and not neighbours(subject.sites, by_position=False):
            raise UserError(f"{subject.place}: no position has two layers; nothing can be compared")

    def _sites_with_seeds(self, subject: Subject) -> list[Site]:
        return [site for site in subject.sites if subject.atlas.seed_folders(site)]

    def items(self, subject: Subject, settings: StabilitySettings) -> list[Item]:
        """A site with its seeds each, and a pair of neighbouring layers each."""
        items = []
        if SEEDS in settings.between:
            items += [Item(_key(SEEDS, site), (site,)) for site in self._sites_with_seeds(subject)]
        if LAYERS in settings.between:
            pairs = neighbours(subject.sites, by_position=False)
            items += [Item(_key(LAYERS, *pair), pair) for pair in pairs]
        return items

    def inputs(
        self, subject: Subject, settings: StabilitySettings, item: Item | None
    ) -> Mapping[str, Any]:
        """The SAEs of further seeds."""
        sites = subject.sites if item is None else item.sites
        if item is not None and not item.key.startswith(SEEDS):
            return {}
        return {
            site.folder: [sae_digest(folder) for folder in subject.atlas.seed_folders(site)]
            for site in sites
        }

    def work(
        self, subject: Subject, settings: StabilitySettings, item: Item, folder: Path, alive: Alive
    ) -> None:
        """Compare the seeds of a site, or two layers."""
        if item.key.startswith(SEEDS):
            (site,) = item.sites
            rows = _rows(subject, settings, site)
            names = [one.name.rpartition("=")[2] for one in subject.atlas.seed_folders(site)]
            saes = [subject.atlas[site], *subject.atlas.seeds(site)]
            kind, labels = SEEDS, ["first", *(f"seed {name}" for name in names)]
            found = [_dictionary(sae, rows, alive) for sae in saes]
        else:
            kind, labels = LAYERS, [f"layer {site.layer}" for site in item.sites]
            found = [
                _dictionary(subject.atlas[site], _rows(subject, settings, site), alive)
                for site in item.sites
            ]
        save(folder, compare(kind, item.sites, labels, found, settings, subject.seed, alive))

    def collect(
        self, subject: Subject, settings: StabilitySettings, folders: Mapping[Item, Path]
    ) -> Result:
        """Means over sites, and the universal features."""
        return summary(folders, settings, subject.seed)

    def draw(self, result: Result, settings: StabilitySettings, source: str, folder: Path) -> None:
        """Every site's stability beside chance."""
        draw(result.tables["pairs"], source, folder / "stability.png")


def _key(kind: str, *sites: Site) -> str:
    return ",".join([kind, "--".join(site.folder.replace("/", ",") for site in sites)])


def _rows(subject: Subject, settings: StabilitySettings, site: Site) -> list[Tensor]:
    """The validation rows of a site. Raises UserError when there is none."""
    parts = list(row_parts(subject.store, site, ("validation",), settings.rows))
    if not parts:
        raise UserError(
            f"{subject.store.place}: {site} has no validation rows; make the store with "
            "source.validation above 0"
        )
    return [part.activation_ND for part in parts]


@torch.no_grad()
def _dictionary(sae: SAE, rows: list[Tensor], alive: Alive) -> Dictionary:
    """An SAE's decoder rows, and on how many rows each latent fires."""
    fires_F = torch.zeros(sae.config.d_sae, dtype=torch.int64)
    for x_ND in rows:
        for some_ND in x_ND.split(max(1, DENSE_VALUES // sae.config.d_sae)):
            fires_F += (sae.encode(some_ND.to(sae.W_dec)) > 0).sum(dim=0).cpu()
            alive()
    return Dictionary(sae.W_dec.detach().cpu(), fires_F, sum(map(len, rows)))
