"""What is analysed: an atlas, the store of its activations, and the transformer that made them.

A ``Subject`` is small and is sent to every worker, which opens what it needs when it needs it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysae.atlas.library.atlas import Atlas
from raysae.atlas.library.encoding import Transformer, known_source, source_of_store
from raysae.atlas.library.files import AtlasFiles, find_atlas, named_hookpoints
from raysae.errors import UserError
from raysae.records.run_files import RunFiles
from raysae.sites import Site

if TYPE_CHECKING:
    from raysae.activations import Store
    from raysae.config.source import SourceConfig
    from raysae.transformer.sequence import TokenSequence


READ_AT_ONCE = 2**28
"""Parameters of a model, at most, whose weights are compared before anything runs."""


@dataclass(frozen=True)
class Subject:
    """An atlas with all that is known of its data."""

    place: str
    """What opens the atlas: a run's folder or URI, an exported atlas, SAELens's folders."""
    files: RunFiles
    """Where results are written: in the folder ``analysis`` below."""
    store_place: str | None = None
    """What opens the store; None where none is at hand."""
    seed: int = 0
    """The seed of everything random."""
    device: str = "cpu"
    given: AtlasFiles | None = None
    """The files in place of those at ``place``, where there is no atlas yet."""

    def sent(self, device: str) -> "Subject":
        """The same subject for a worker on another process or node, with nothing open."""
        return replace(self, files=self.files.on_this_node(), device=device)

    @cached_property
    def atlas(self) -> Atlas:
        """The atlas, or a single SAE as one of one site; what it does not say of its activations is what
        the store says. Raises UserError when there is none."""
        files = find_atlas(self.place) if self.given is None else self.given
        return Atlas(files if self.store_place is None else self._completed(files), self.device)

    def _completed(self, files: AtlasFiles) -> AtlasFiles:
        """The files with what the store says: its sites' hookpoints, the model and texts behind it."""
        manifest, hookpoint = self.store.manifest, files.provenance.get("hookpoint")
        if named_hookpoints(self.store.sites) and not named_hookpoints(files.saes):
            saes = {replace(s, hookpoint=hookpoint): place for s, place in files.saes.items()}
            files = replace(files, saes=saes)
        digest = files.provenance.get("store_digest")
        if digest not in (None, self.store.digest) or known_source(files) is not None:
            return files
        source = source_of_store(manifest, Path.cwd())
        if source is None:
            return files
        told = {**files.provenance, "provenance": manifest.provenance, "model": manifest.model}
        return replace(files, source=source.model_dump(mode="json"), provenance=told)

    @cached_property
    def sites(self) -> list[Site]:
        """The sites that have an SAE, by layer and position."""
        return self.atlas.sites

    @cached_property
    def store(self) -> "Store":
        """The store of the activations. Raises UserError when none is at hand."""
        from raysae.activations import open_store

        if self.store_place is None:
            raise UserError(
                f"{self.place}: the store of its activations is not known; name it with --store STORE"
            )
        return open_store(self.store_place)

    @property
    def store_digest(self) -> str:
        """The store's digest; empty where there is no store."""
        return "" if self.store_place is None else self.store.digest

    def need_rows(self) -> None:
        """Raise UserError unless the rows of the atlas's sites are in the store, and are its own."""
        if self.store.computes_rows:
            raise UserError(
                f"{self.store.place}: its training rows are not on disk (source.live); keep them with "
                "source.keep=yes, or extract them with source.live=false"
            )
        self.need_store()

    def need_store(self) -> None:
        """Raise UserError unless the store has the atlas's sites, and its SAEs read such rows."""
        store, known = self.store, self.atlas.provenance.get("store_digest")
        if known not in (None, store.digest):
            raise UserError(
                f"{self.place}: its SAEs were trained on another store (digest {known[:12]}) than "
                f"{store.place} ({store.digest[:12]}); name its own with --store STORE"
            )
        missing = [site for site in self.sites if site not in store.sites]
        if missing:
            raise UserError(
                f"{store.place}: has no rows of {len(missing)} of {len(self.sites)} sites of the atlas, "
                f"such as {missing[0]}; it has {store.sites[0]} to {store.sites[-1]}: give the store of "
                "these sites with --store STORE"
            )
        if known is None:
            self._need_alike(store)

    def _need_alike(self, store: "Store") -> None:
        """Raise UserError when SAEs of unknown origin cannot have been trained on rows as the store's."""
        there = self.atlas.provenance.get("hookpoint")
        if isinstance(there, str) and there not in store.hookpoints:
            raise UserError(
                f"{self.place}: its SAEs read {there}, and {store.place} holds "
                f"{', '.join(store.hookpoints)}; extract a store with source.hookpoint={there}"
            )
        d_in = self.atlas[self.sites[0]].d_in if self.sites else store.d_in
        if d_in != store.d_in:
            raise UserError(
                f"{self.place}: its SAEs read rows of {d_in} values, those of {store.place} have "
                f"{store.d_in}; give a store of their model with --store STORE"
            )

    @cached_property
    def source(self) -> "SourceConfig":
        """How texts became activations. Raises UserError when nothing says it."""
        source = known_source(self.atlas.files)
        if source is None:
            origin = self.atlas.provenance.get("provenance") or "of unknown origin"
            raise UserError(
                f"{self.place}: nothing records which model and texts the activations came from (they "
                f"are {origin}); this phase needs them"
            )
        return source

    @cached_property
    def transformer(self) -> Transformer:
        """The transformer and tokenizer, loaded; their hashes are the store's.

        Raises UserError when they cannot be loaded or are others.
        """
        _ = self.source
        found = Transformer.of(self.atlas.files, self.device, None, None)
        found.check_same()
        return found

    def need_model(self) -> None:
        """Raise UserError unless the transformer is known and at hand, and its weights are the store's.

        A large model's weights are not read here: the first worker compares them.
        """
        from raysae.extraction.plan import model_spec
        from raysae.extraction.test_pass import without_bars
        from raysae.transformer.loading import empty_model, load_model_config

        spec = model_spec(self.source)
        empty = empty_model(load_model_config(spec), spec)
        if sum(parameter.numel() for parameter in empty.parameters()) <= READ_AT_ONCE:
            known = "transformer" in self.__dict__
            with without_bars():
                _ = self.transformer
            if not known:
                del self.__dict__["transformer"]

    def sequences(self, split: str) -> "Iterator[TokenSequence]":
        """The store's sequences of a split (``train``, ``validation``, ``test``), as the model read them.

        Their numbers (``sequence``) are those in the column ``sequence`` of the rows. Raises UserError
        when the store has none, as an import or a synthetic store.
        """
        from raysae.activations.splits import SPLITS, split_of
        from raysae.transformer.sequence import from_table

        manifest = self.store.manifest
        if not manifest.sequences:
            raise UserError(
                f"{self.store.place}: holds no texts (its provenance is {manifest.provenance}); only a "
                "store that raysae extracted has them"
            )
        shares = manifest.split["validation"], manifest.split["test"]
        for part in manifest.sequences:
            sequences = from_table(self.store.sequences(part))
            codes = split_of(np.array([one.sequence for one in sequences], np.int64), *shares)
            for sequence, code in zip(sequences, codes, strict=True):
                if SPLITS[code] == split:
                    yield sequence

    def result(self, phase: str) -> dict[str, Any] | None:
        """The committed result of another phase (``result.json``); None where it was not run."""
        from raysae.analysis.results import read_result

        return read_result(self.files, phase)
