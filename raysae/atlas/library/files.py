"""What an atlas's folder holds: which SAE is where, of which sites there is none, and what made them.

An atlas is a run's folder ``atlas``; a folder with an ``atlas.json``, as an export writes it; or a folder
of folders that SAELens wrote, in which ``cfg.json`` names the hook. The folder of a single SAE, raysae's
or SAELens's, is an atlas of one site.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raysae.atlas.library.hooks import saelens_folders
from raysae.atlas.library.index import INDEX_FILE, read_index
from raysae.errors import UserError
from raysae.records.commit import figures_of, state_of
from raysae.records.damage import read_record
from raysae.records.rows import SiteRow
from raysae.records.run_files import RECIPE_FILE, RunFiles
from raysae.records.tables import read_sites
from raysae.sae.checkpoint import CONFIG_FILE, METRICS_FILE
from raysae.sae.interchange.settings import part
from raysae.sites import Site, site_folders
from raysae.storage.files import expanded, read_json, refuse_links_outside
from raysae.storage.remote import is_uri, join, split
from raysae.storage.untrusted import usable_path

ATLAS, TABLE = "atlas", "metrics.parquet"
RUN_ABOVE = 3
"""Folders above an SAE's, at most, of which one is its run's."""
ORIGIN = ("provenance", "model", "dataset", "hookpoint", "context_length", "store_digest")
"""What an SAE's metadata say of the activations that it was trained on."""


@dataclass(frozen=True)
class AtlasFiles:
    """The files of an atlas."""

    folder: Path
    saes: Mapping[Site, Path]
    """The folder of each site's SAE."""
    rows: Sequence[SiteRow]
    """A row a site: its state, and its figures where they are known."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the activations were made from, under the names in ``ORIGIN``."""
    source: Mapping[str, Any] | None = None
    """The settings of the recipe's ``source``, where ``atlas.json`` has them."""
    run: Path | None = None
    """The folder of the run that the atlas belongs to; None of others."""

    @property
    def failed(self) -> dict[Site, str]:
        """The sites without an SAE, each with the reason."""
        states = {site_of(row): row for row in self.rows}
        return {
            site: row.reason or f"its state is {row.state}, and it has no folder"
            for site, row in sorted(states.items())
            if site not in self.saes
        }


def find_atlas(place: str | Path) -> AtlasFiles:
    """The atlas at ``place``: a run's folder or URI, its ``atlas``, an export, or SAELens's folders.

    Raises UserError when there is none, when a file that lists its sites is damaged, or when a link in it
    leads out of it.
    """
    found = _local(place)
    run = found if (found / RECIPE_FILE).is_file() else None
    folder = found / ATLAS if run or (found / ATLAS).is_dir() else found
    if run is None and folder.name == ATLAS and (folder.parent / RECIPE_FILE).is_file():
        run = folder.parent
    if not folder.is_dir():
        raise UserError(f"{place}: {_what_is_missing(found)}")
    refuse_links_outside(folder, "this atlas")
    if (folder / INDEX_FILE).is_file():
        return _of_index(folder)
    saes = _folders_of_sites(folder)
    if saes or (folder / TABLE).is_file():
        return _of_run(folder, saes, run)
    if run is not None:
        raise UserError(f"{run}: its atlas has no site yet; the same command goes on with the run")
    if _is_own(folder / CONFIG_FILE):
        return _of_one(folder)
    if any(folder.rglob(CONFIG_FILE)):
        return _of_saelens(folder)
    raise UserError(
        f"{place}: no {CONFIG_FILE}, so there are neither an SAE nor an atlas; expected a run with an "
        f"atlas, its {ATLAS} folder, an exported atlas ({INDEX_FILE}) or SAEs that SAELens wrote"
    )


def site_of(row: SiteRow) -> Site:
    """The site of a table's row. Raises UserError when no site can be so."""
    try:
        return row.site
    except ValueError as error:
        raise UserError(f"{TABLE} of the atlas: {error}; it was damaged or altered") from None


def _local(place: str | Path) -> Path:
    """The folder of ``place``; of a URI the local copy, with what it lacked of the atlas."""
    if not is_uri(str(place)):
        return usable_path(expanded(place))
    parent, name = split(str(place))
    files = RunFiles.at(parent if name == ATLAS else join(parent, name))
    for fetched in (RECIPE_FILE, ATLAS):
        files.fetch(files.path / fetched)
    return files.path


def _what_is_missing(found: Path) -> str:
    if (found / RECIPE_FILE).is_file():
        return (
            "the run has no atlas; the same command makes one where atlas.enabled is true and a config "
            "was chosen"
        )
    return "is a file" if found.is_file() else "not found; expected a run with an atlas"


def _folders_of_sites(folder: Path) -> dict[Site, Path]:
    """The committed SAEs of a run's atlas, by site."""
    found = {}
    for config in site_folders(folder, CONFIG_FILE):
        with suppress(ValueError):  # a folder beside those of the sites
            site = Site.of_folder(config.parent.relative_to(folder).as_posix())
            found[site] = config.parent
    return dict(sorted(found.items()))


def _of_run(folder: Path, saes: Mapping[Site, Path], run: Path | None) -> AtlasFiles:
    rows = read_sites(folder / TABLE) or _rows_of_records(saes)
    return AtlasFiles(folder, saes, rows, _origin(saes), run=run)


def _rows_of_records(saes: Mapping[Site, Path]) -> list[SiteRow]:
    """The rows of sites that were committed by a run that has not ended."""
    rows = []
    for site, folder in saes.items():
        try:
            record = read_record(folder)
            ended = state_of(record)
            rows.append(_row(site, ended["state"], ended["reason"], figures_of(record)))
        except UserError as error:
            rows.append(_row(site, "failed", str(error)))
    return rows


def _row(
    site: Site, state: str, reason: str = "", figures: Mapping[str, Any] = MappingProxyType({})
) -> SiteRow:
    place = (site.layer, str(site.position))
    return SiteRow(*place, state, reason, dict(figures), site.hookpoint)


def _origin(saes: Mapping[Site, Path]) -> dict[str, Any]:
    """Where the activations came from, as the first readable SAE says; all of a run have the same, but
    for the hookpoints of several."""
    for folder in saes.values():
        with suppress(UserError, OSError, AttributeError):
            metadata = read_json(folder / CONFIG_FILE)["metadata"]
            several = named_hookpoints(saes)
            told = {name: metadata.get(name) for name in ORIGIN}
            return {**told, "hookpoint": several} if several else told
    return {}


def named_hookpoints(sites: Iterable[Site]) -> list[str]:
    """The hookpoints that sites name, in order; empty where there is one, which they do not name."""
    return sorted({site.hookpoint for site in sites if site.hookpoint is not None})


def _of_index(folder: Path) -> AtlasFiles:
    index = read_index(folder)
    saes = {site: folder / name for site, name in sorted(index.folders.items())}
    rows = read_sites(folder / TABLE) or [
        _row(site, *state) for site, state in sorted(index.states.items())
    ]
    return AtlasFiles(folder, saes, rows, index.provenance, index.source)


def _is_own(config: Path) -> bool:
    """Whether it is the ``cfg.json`` of an SAE that raysae wrote."""
    if not config.is_file():
        return False
    found = read_json(config)
    return isinstance(found, dict) and found.get("format") == "raysae"


def _of_one(folder: Path) -> AtlasFiles:
    """The atlas of one SAE that raysae wrote: its metadata name the site. Raises UserError if not."""
    metadata = part(read_json(folder / CONFIG_FILE), "metadata")
    layer, position = metadata.get("layer"), metadata.get("position")
    try:
        if type(layer) is not int or not isinstance(position, int | str):
            raise ValueError("expected a whole number, and a number or a name")
        site = Site(layer, position)
    except ValueError as error:
        raise UserError(
            f"{folder / CONFIG_FILE}: metadata.layer is {layer!r}, metadata.position {position!r} "
            f"({error}); nothing says which rows this SAE reads: give those of its site in its store"
        ) from None
    runs = [place for place in folder.parents[:RUN_ABOVE] if (place / RECIPE_FILE).is_file()]
    rows = _rows_of_records({site: folder}) if (folder / METRICS_FILE).is_file() else None
    return AtlasFiles(
        folder, {site: folder}, rows or [_row(site, "done")],
        {name: metadata.get(name) for name in ORIGIN}, run=runs[0] if runs else None,
    )  # fmt: skip


def _of_saelens(folder: Path) -> AtlasFiles:
    saes, origin = saelens_folders(folder)
    rows = [_row(site, "done") for site in saes]
    return AtlasFiles(folder, saes, rows, {name: origin.get(name) for name in ORIGIN})


def record_beside(folder: Path) -> dict[str, Any] | None:
    """The record of the training, beside an SAE's weights; None without a readable one."""
    try:
        return read_record(folder) if (folder / METRICS_FILE).is_file() else None
    except UserError:
        return None
