"""A whole atlas in the format of another library, or in raysae's own: a folder a site, and an index."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysae.atlas.library.atlas import Atlas, open_atlas
from raysae.atlas.library.encoding import known_source
from raysae.atlas.library.files import TABLE, AtlasFiles, record_beside, site_of
from raysae.atlas.library.hooks import folder_name
from raysae.atlas.library.index import Index, write_index
from raysae.errors import UserError, in_one_line
from raysae.records.rows import SiteRow
from raysae.records.run_files import MEMBERS
from raysae.records.tables import write_csv, write_table
from raysae.sae import SAE, export_sae, load_sae, save_sae
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sae.interchange import FORMATS
from raysae.sites import Site
from raysae.storage.files import remove_folder
from raysae.storage.untrusted import usable_path

OWN, METRICS = "raysae", Path(METRICS_FILE).stem


@dataclass
class Exported:
    """What an export wrote, and what it could not."""

    folders: dict[Site, str] = field(default_factory=dict)
    """The folder of each site that was written, relative to the export."""
    failed: dict[Site, str] = field(default_factory=dict)
    """Why each other site was not: it failed in the atlas, or it cannot be read or expressed."""


def export_atlas(atlas: Atlas | str | Path, folder: str | Path, to: str) -> Exported:
    """Write every SAE of ``atlas`` into a folder of its own below ``folder``, as the library ``to`` loads
    it (``saelens``, ``sparsify``, ``dictionary_learning``, or ``raysae`` itself).

    Beside them: ``atlas.json``, the list of all sites, and the table of figures (``metrics.parquet``,
    ``metrics.csv``); ``open_atlas`` reads the result. Positions have no name in other libraries: a
    site's folder is ``blocks.8.hook_resid_post``, with ``.position_-1`` after it unless positions are
    pooled, and of several seeds the first is written. With ``to="raysae"`` all seeds are, and SAEs of
    SAELens become an atlas like a run's. A site that cannot be read or expressed is named in the result,
    and the others are written. Raises UserError when ``to`` is not known, when ``folder`` is not empty,
    or when no site at all can be written.
    """
    atlas = atlas if isinstance(atlas, Atlas) else open_atlas(atlas)
    target = usable_path(folder)
    _refuse(target, to)
    target.mkdir(parents=True, exist_ok=True)
    exported = Exported(failed=dict(atlas.failed))
    for site in atlas:
        name = _name(atlas, site, to)
        try:
            _write_one(atlas, site, target / name, to)
        except (UserError, OSError) as error:
            exported.failed[site] = in_one_line(error)
        else:
            exported.folders[site] = name
    if not exported.folders:
        remove_folder(target)
        why = next(iter(exported.failed.values()), "the atlas has no site")
        raise UserError(f"{atlas.folder}: no site could be written as {to}: {why}")
    _write_tables(atlas, target, to, exported)
    return exported


def _refuse(target: Path, to: str) -> None:
    if to not in (OWN, *FORMATS):
        raise UserError(f"there is no format {to!r}; known are {', '.join((OWN, *FORMATS))}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; give another folder, or remove it")


def _name(atlas: Atlas, site: Site, to: str) -> str:
    if to == OWN:
        return site.folder
    hookpoint = atlas.provenance.get("hookpoint")  # a list where sites name theirs
    return folder_name(site, hookpoint if isinstance(hookpoint, str) else None)


def _write_one(atlas: Atlas, site: Site, folder: Path, to: str) -> None:
    source = atlas.files.saes[site]
    if to != OWN:
        export_sae(_read(atlas, site, source), folder, to)
        return
    beside = source.with_suffix(MEMBERS)
    for place in atlas.seed_folders(site):
        member = folder.with_suffix(MEMBERS) / place.relative_to(beside)
        save_sae(_read(atlas, site, place), member)
    record = record_beside(source)
    more = {} if record is None else {METRICS: record}
    save_sae(_read(atlas, site, source), folder, **more)


def _read(atlas: Atlas, site: Site, folder: Path) -> SAE:
    """An SAE of the site, which the atlas does not keep in memory."""
    sae = load_sae(folder, format=atlas.format)
    sae.metadata = _placed(sae, site, atlas.files)
    return sae


def _placed(sae: SAE, site: Site, files: AtlasFiles) -> dict[str, Any]:
    """The SAE's metadata with its place and its origin, which SAEs of some libraries do not have."""
    known = {key: value for key, value in files.provenance.items() if value is not None}
    own = {key: value for key, value in sae.metadata.items() if value is not None}
    if not _id(own.get("model")):
        own.pop("model", None)
    return {**known, **own, **site.columns}


def _id(model: Any) -> Any:
    return model.get("id") if isinstance(model, Mapping) else None


def _write_tables(atlas: Atlas, target: Path, to: str, exported: Exported) -> None:
    rows = [_row(row, exported) for row in atlas.metrics]
    write_csv(target / "metrics.csv", rows)
    write_table(target / TABLE, rows)
    source = None
    with suppress(UserError, OSError):  # an atlas whose recipe is lost can be written all the same
        source = known_source(atlas.files)
    settings = None if source is None else source.model_dump(mode="json")
    index = Index(to, exported.folders, exported.failed, atlas.provenance, settings)
    write_index(target, index)  # last: with it the export is complete


def _row(row: SiteRow, exported: Exported) -> SiteRow:
    """The row of a site; one that could not be written has the reason and no figures."""
    why = exported.failed.get(site_of(row))
    return row if why is None else replace(row, state="failed", reason=why, figures={})
