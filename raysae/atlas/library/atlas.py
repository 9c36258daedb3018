"""An atlas as a mapping from sites to SAEs, which are loaded when they are first asked for."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raysae.atlas.library.encoding import Latents, Text, Transformer, latents_of, texts_of
from raysae.atlas.library.files import AtlasFiles, find_atlas, named_hookpoints
from raysae.errors import UserError
from raysae.records.rows import SiteRow
from raysae.records.run_files import MEMBERS
from raysae.sae import SAE, load_sae
from raysae.sae.checkpoint import CONFIG_FILE
from raysae.sites import Position, Site

Key = Site | tuple[int, Position] | tuple[int, Position, str]
"""A site, or its layer and position, and its hookpoint where the atlas has several."""
CACHED_BYTES = 4e9
"""Bytes of weights that an atlas keeps in memory, unless told otherwise."""


class MissingSiteError(UserError, KeyError):
    """The atlas has no SAE of that site: there is no such site, or its training failed."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would quote the message


class Atlas(Mapping[Site, SAE]):
    """One SAE for each layer and position: ``atlas[8, -1]``, or ``atlas[site]``.

    ``len``, ``in`` and iteration are over the sites that have an SAE, in order of layer and position;
    ``failed`` has the others. An SAE is loaded when it is first asked for, and kept while all that are
    kept take up to ``cached_bytes``. A damaged SAE raises UserError for itself alone.
    """

    def __init__(
        self,
        files: AtlasFiles,
        device: str = "cpu",
        cached_bytes: float = CACHED_BYTES,
        format: str | None = None,
    ):
        self.files, self.device, self.cached_bytes, self.format = (
            files,
            device,
            cached_bytes,
            format,
        )
        self._loaded: OrderedDict[Site, SAE] = OrderedDict()
        self._held = 0
        self._transformer: Transformer | None = None

    @property
    def folder(self) -> Path:
        """The folder of the atlas."""
        return self.files.folder

    @property
    def sites(self) -> list[Site]:
        """The sites that have an SAE, by layer and position."""
        return list(self.files.saes)

    @property
    def failed(self) -> dict[Site, str]:
        """The sites that have none, each with the reason."""
        return self.files.failed

    @property
    def metrics(self) -> list[SiteRow]:
        """A row a site, as in ``atlas/metrics.parquet``: ``row["explained_variance"]``, ``row["l0"]``.

        A site that failed has its ``reason`` and no figures. SAEs of another library have none either.
        """
        return list(self.files.rows)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the activations came from: ``model``, ``dataset``, ``hookpoint``, ``context_length``,
        ``store_digest``, and ``provenance`` (``model``, ``imported`` or ``synthetic``)."""
        return dict(self.files.provenance)

    def site(self, key: Key) -> Site:
        """The site that ``key`` names, which has an SAE. Raises MissingSiteError when it has none."""
        site = _as_site(key)
        if site in self.files.saes:
            return site
        if site in self.failed:
            raise MissingSiteError(f"{self.folder}: {site} failed: {self.failed[site]}")
        raise MissingSiteError(
            f"{self.folder}: the atlas has no {site}; {self._what_there_is(site)}"
        )

    def _what_there_is(self, wanted: Site) -> str:
        """The hookpoints, where the wanted one is none of them; else the positions of the site's layer,
        or else the layers."""
        hookpoints = named_hookpoints(self.sites)
        if hookpoints and wanted.hookpoint not in hookpoints:
            return f"its hookpoints are {', '.join(hookpoints)}: atlas[layer, position, hookpoint]"
        if wanted.hookpoint is not None and not hookpoints:
            return "it has one hookpoint, which sites do not name: atlas[layer, position]"
        alike = [site for site in self.sites if site.hookpoint == wanted.hookpoint]
        beside = [str(site.position) for site in alike if site.layer == wanted.layer]
        if beside:
            return f"layer {wanted.layer} has the positions {', '.join(beside)}"
        layers = dict.fromkeys(str(site.layer) for site in alike)
        return f"its layers are {', '.join(layers) or 'none, as no site has an SAE'}"

    def __getitem__(self, key: Key) -> SAE:
        site = self.site(key)
        if site not in self._loaded:
            self._keep(site, load_sae(self.files.saes[site], self.device, self.format))
        self._loaded.move_to_end(site)
        return self._loaded[site]

    def _keep(self, site: Site, sae: SAE) -> None:
        """Keep an SAE, and let go of those that were not asked for the longest where there is no room."""
        self._held += weight_bytes(sae)
        while self._loaded and self._held > self.cached_bytes:
            self._held -= weight_bytes(self._loaded.popitem(last=False)[1])
        self._loaded[site] = sae

    def __contains__(self, key: object) -> bool:
        try:
            return _as_site(key) in self.files.saes
        except UserError:
            return False

    def __iter__(self) -> Iterator[Site]:
        return iter(self.files.saes)

    def __len__(self) -> int:
        return len(self.files.saes)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"Atlas({str(self.folder)!r}: {len(self)} sites{failed})"

    def seeds(self, key: Key) -> list[SAE]:
        """The site's SAEs of further seeds, by seed; the first seed's is ``atlas[site]``.

        Empty where the atlas has one seed a site. They are not kept. Raises what ``atlas[site]`` does.
        """
        return [load_sae(place, self.device, self.format) for place in self.seed_folders(key)]

    def seed_folders(self, key: Key) -> list[Path]:
        """The folders of the site's SAEs of further seeds, by seed. Raises what ``atlas[site]`` does."""
        members = self.files.saes[self.site(key)].with_suffix(MEMBERS)
        folders = [config.parent for config in members.rglob(CONFIG_FILE)]
        return sorted(folders, key=lambda folder: _seed(folder.name))

    def encode(
        self,
        texts: Text | Iterable[Text],
        sites: Iterable[Key] | None = None,
        *,
        model: Any = None,
        tokenizer: Any = None,
        force: bool = False,
    ) -> dict[Site, Latents]:
        """The latents of ``texts`` at ``sites`` (by default all): the model runs once over each text, and
        all sites are read from that pass.

        A text is a string, or a chat's messages where the recipe names a ``chat_column``. Texts are cut
        into tokens as the extraction did (context length, special tokens, patterns), each alone, also
        where the store was packed, and rows are rounded to the store's dtype; rows that the extraction
        would leave out (``max_norm_ratio``) are read like any other. A text too short for a position has
        no row there.

        The model and its tokenizer are those that the recipe names, loaded at the first call; ``model``
        is a transformer of Hugging Face, which is set to evaluation and gets no gradients, or the folder
        or hub id of one. Raises UserError when its weights, or the tokenizer, are not those that the
        store was made with, or nothing says which these are, unless ``force``; and when a site is missing
        or damaged.
        """
        wanted = [self.site(key) for key in (self.sites if sites is None else sites)]
        parts: dict[Site, list[Latents]] = {site: [] for site in wanted}
        for rows in self.transformer(model, tokenizer, force).rows(texts_of(texts), wanted):
            for site in wanted:
                parts[site].append(latents_of(self[site], rows.pop(site)))
        return {site: Latents.joined(found) for site, found in parts.items()}

    def transformer(
        self, model: Any = None, tokenizer: Any = None, force: bool = False
    ) -> Transformer:
        """The transformer that ``encode`` uses, loaded or taken as given; the last one is kept.

        Raises UserError as ``encode`` does.
        """
        last = self._transformer
        if last is None or not last.is_for(model, tokenizer):
            last = Transformer.of(self.files, self.device, model, tokenizer)
        last.check(force)
        self._transformer = last
        return last


def open_atlas(
    place: str | Path,
    *,
    device: str = "cpu",
    cached_bytes: float = CACHED_BYTES,
    format: str | None = None,
) -> Atlas:
    """Open an atlas: a run's folder or URI, its ``atlas`` folder, one that ``python -m raysae.export``
    wrote, or a folder of SAEs that SAELens wrote, whose hooks' names say the layers.

    Its SAEs are loaded on ``device`` when they are first asked for. ``format`` is as in ``load_sae``:
    dictionary_learning's pickles are read only with ``format="dictionary_learning"``. Raises UserError
    when there is no atlas, or a file that lists its sites is damaged.
    """
    return Atlas(find_atlas(place), device, cached_bytes, format)


def weight_bytes(sae: SAE) -> int:
    """Bytes of an SAE's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in sae.state_dict().values())


def _as_site(key: object) -> Site:
    """The site of a key. Raises MissingSiteError when it is none."""
    if isinstance(key, Site):
        return key
    try:
        return Site(*key)  # type: ignore[misc]
    except (TypeError, ValueError) as error:
        raise MissingSiteError(
            f"{key!r} names no site ({error}); expected atlas[layer, position] or atlas[site]"
        ) from None


def _seed(name: str) -> tuple[int, str]:
    """Members in the order of their seeds: ``position=03,seed=2`` before ``position=03,seed=10``."""
    number = name.rpartition("=")[2]
    return (int(number) if number.isdecimal() else 0, name)
