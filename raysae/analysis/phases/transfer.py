"""Transfer: SAEs on another data set's rows, and features matched with another model's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from raysae.analysis.phase import Alive, Item, Phase, Result
from raysae.analysis.results import sae_digest
from raysae.analysis.site_latents import row_parts
from raysae.analysis.subject import Subject
from raysae.analysis.transfer_loss import loss_on
from raysae.analysis.transfer_models import (
    Other,
    check_texts,
    compare_models,
    counterparts,
    subject_named,
)
from raysae.analysis.transfer_result import draw, summary
from raysae.analysis.transfer_rows import on_rows, overlap
from raysae.config.section import Positive, Section
from raysae.errors import UserError
from raysae.sae import SAE
from raysae.sites import Site
from raysae.storage.files import expanded, write_json
from raysae.storage.remote import is_uri

DATA, MODELS = "data", "models"
FOUND = "found.json"


class TransferSettings(Section):
    """Where the atlas is taken."""

    store: str | None = None
    """Another store of the same model, of other texts, with the same sites: its folder or URI."""
    atlas: str | None = None
    """The atlas (or run) that was trained on that store, to compare with."""
    ce_texts: Annotated[int, Field(ge=0)] = 50
    """Validation texts of either store over which the SAE is spliced into the model (``ce_recovered``),
    at most; 0: none. Without the model at hand it is left out, with the reason."""
    other: str | None = None
    """A run (or atlas) of another model over the same texts."""
    other_store: str | None = None
    """Its store, where it is an atlas outside a run."""
    rows: Positive = 20_000
    """Validation rows of a site, at most."""
    features: Positive = 1024
    """Features of a site that are matched, at most: the densest. Time grows with the cube."""
    fires: Positive = 5
    """A feature is matched when it is active on at least so many of the common rows."""
    permutations: Positive = 20
    """Draws of the permutation null."""
    false_matches: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """The share of features that would be matched where nothing belongs together."""
    universal: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A matched feature is universal when its activations correlate at least so much."""
    shuffled: bool = True
    """Whether the other model is also run with shuffled weights, as a control, where it is at hand."""

    @field_validator("store", "atlas", "other", "other_store")
    @classmethod
    def _anywhere(cls, place: str | None) -> str | None:
        """Folders as absolute ones: workers have other working folders."""
        if place is None or is_uri(place):
            return place
        return str(expanded(place).absolute())


class Transfer(Phase):
    """The atlas on other texts, and its features in another model."""

    name = "transfer"
    title = "Transfer: other texts, another model"
    Settings = TransferSettings

    def check(self, subject: Subject, settings: TransferSettings) -> None:
        """Another store, or another model's run, must be named, and must have the same sites or texts."""
        subject.need_rows()
        if settings.atlas is not None and settings.store is None:
            raise UserError("transfer.atlas: give also transfer.store, on which it was trained")
        if settings.store is None and settings.other is None:
            raise UserError(
                "transfer: nothing to transfer to; give transfer.store=STORE (other texts of the "
                "same model) "
                "or transfer.other=RUN (another model over the same texts)"
            )
        if settings.store is not None:
            _check_store(subject, settings)
        if settings.other is not None:
            other = _other(settings)
            other.need_rows()
            check_texts(subject, other)
            if not counterparts(subject, other):
                raise UserError(
                    f"{settings.other}: has none of the positions of {subject.place}; make both stores "
                    "with the same positions, such as source.positions=[all]"
                )

    def items(self, subject: Subject, settings: TransferSettings) -> list[Item]:
        """A site on the other store each; a site with its counterpart in the other model each."""
        items = []
        if settings.store is not None:
            items += [Item(_key(DATA, site), (site,)) for site in _data_sites(subject, settings)]
        if settings.other is not None:
            pairs = counterparts(subject, _other(settings))
            items += [Item(_key(MODELS, *pair), pair[:1]) for pair in pairs]
        return items

    def inputs(
        self, subject: Subject, settings: TransferSettings, item: Item | None
    ) -> Mapping[str, Any]:
        """The digests of the other stores, and of the other SAEs."""
        found: dict[str, Any] = {}
        if settings.store is not None and (item is None or item.key.startswith(DATA)):
            there = _elsewhere(settings)
            found["store"] = there.store_digest
            if settings.atlas is not None:
                sites = there.sites if item is None else [item.sites[0]]
                found["atlas"] = _sae_digests(there, sites)
        if settings.other is not None and (item is None or item.key.startswith(MODELS)):
            other = _other(settings)
            found["other_store"] = other.store_digest
            sites = other.sites if item is None else [_pair_of(subject, other, item)[1]]
            found["other"] = _sae_digests(other, sites)
        return found

    def work(
        self, subject: Subject, settings: TransferSettings, item: Item, folder: Path, alive: Alive
    ) -> None:
        """Measure a site on both stores, or match it with its counterpart."""
        (site,) = item.sites
        if item.key.startswith(DATA):
            found: Any = {"kind": DATA, **_on_both(subject, settings, site, alive)}
        else:
            other = _other(settings)
            pair = _pair_of(subject, other, item)
            found = {
                "kind": MODELS, **compare_models(subject, other, pair, settings, item.key, alive)
            }  # fmt: skip
        write_json(folder / FOUND, {"site": site.folder, **found})

    def collect(
        self, subject: Subject, settings: TransferSettings, folders: Mapping[Item, Path]
    ) -> Result:
        """Means over sites with intervals, beside the own figures and the controls."""
        return summary([folder / FOUND for folder in folders.values()], settings, subject.seed)

    def draw(self, result: Result, settings: TransferSettings, source: str, folder: Path) -> None:
        """Explained variance on both stores; shares of features matched beside the controls."""
        draw(result.tables, source, folder)


def _key(kind: str, *sites: Site) -> str:
    return ",".join([kind, "--".join(site.folder.replace("/", ",") for site in sites)])


def _elsewhere(settings: TransferSettings) -> Subject:
    """The other store, with its atlas where that is named."""
    assert settings.store is not None
    return subject_named(settings.atlas or settings.store, settings.store)


def _other(settings: TransferSettings) -> Other:
    assert settings.other is not None
    return subject_named(settings.other, settings.other_store)


def _sae_digests(subject: Subject, sites: Sequence[Site]) -> dict[str, str]:
    saes = subject.atlas.files.saes
    return {site.folder: sae_digest(saes[site]) for site in sites if site in saes}


def _pair_of(subject: Subject, other: Subject, item: Item) -> tuple[Site, Site]:
    """The sites of an item of two models."""
    pairs = {_key(MODELS, *pair): pair for pair in counterparts(subject, other)}
    return pairs[item.key]


def _data_sites(subject: Subject, settings: TransferSettings) -> list[Site]:
    there = _elsewhere(settings).store.sites
    return [site for site in subject.sites if site in there]


def _check_store(subject: Subject, settings: TransferSettings) -> None:
    """Raise UserError unless the other store is of the same model and has a site of the atlas."""
    other = _elsewhere(settings)
    store = other.store
    if store.d_in != subject.store.d_in:
        raise UserError(
            f"{store.place}: its rows have {store.d_in} values, those of {subject.store.place} "
            f"{subject.store.d_in}; transfer.store must be of the same model"
        )
    hashes = [
        str((one.manifest.model or {}).get("weights_sha256", "")) for one in (store, subject.store)
    ]
    if all(hashes) and hashes[0] != hashes[1]:
        raise UserError(
            f"{store.place}: its model's weights have the sha256 {hashes[0][:12]}, those of "
            f"{subject.store.place} {hashes[1][:12]}; give a store of the same model, or another model's "
            "run as transfer.other"
        )
    sites = _data_sites(subject, settings)
    usable = [site for site in sites if store.entry(site).rows.validation]
    if not usable:
        raise UserError(
            f"{store.place}: has no validation rows of the atlas's {len(subject.sites)} sites, such as "
            f"{subject.sites[0]}; make it with the same layers, positions and hookpoint"
        )
    if settings.atlas is not None:
        other.need_rows()


def _on_both(
    subject: Subject, settings: TransferSettings, site: Site, alive: Alive
) -> dict[str, Any]:
    """The site's SAE on its own and the other validation rows, and the other's SAE on both."""
    other, seed = _elsewhere(settings), subject.seed
    parts = {}
    for name, store in (("own", subject.store), ("other", other.store)):
        parts[name] = list(row_parts(store, site, ("validation",), settings.rows))
        if not parts[name]:
            raise UserError(f"{store.place}: {site} has no validation rows")
        alive()
    saes: dict[str, SAE] = {"": subject.atlas[site]}
    if settings.atlas is not None and site in other.atlas:
        saes["other_sae_"] = other.atlas[site]
    found: dict[str, Any] = {}
    for prefix, sae in saes.items():
        sums = {name: on_rows(sae, rows, alive) for name, rows in parts.items()}
        found |= {f"{prefix}{name}": one.figures(seed) for name, one in sums.items()}
        found[f"{prefix}overlap"] = overlap(sums["own"], sums["other"], seed)
    _add_losses(found, subject, settings, site, alive)
    return found


def _add_losses(
    found: dict[str, Any], subject: Subject, settings: TransferSettings, site: Site, alive: Alive
) -> None:
    """Add what the model loses with the SAEs spliced in, on either store's texts."""
    if not settings.ce_texts:
        return
    try:
        check_texts(subject, _elsewhere(settings))
        for name, one in _spliced(subject, settings).items():
            if name in found and site in one.sites:
                model = subject.transformer.model
                found[name] |= loss_on(one, model, site, settings.ce_texts, alive)
    except (UserError, OSError) as error:
        found["loss_missing"] = str(error)


def _spliced(subject: Subject, settings: TransferSettings) -> dict[str, Subject]:
    """The atlas with its own store and with the other; the other's with its own."""
    there = replace(subject, store_place=settings.store)
    found = {"own": subject, "other": there}
    if settings.atlas is not None:
        found["other_sae_other"] = _elsewhere(settings)
    return found
