"""What is analysed: an atlas, the store of its activations, and the transformer that made them.

A ``Subject`` is small and is sent to every worker, which opens what it needs when it needs it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raysae.atlas.library.atlas import Atlas, open_atlas
from raysae.atlas.library.encoding import Transformer, known_source
from raysae.errors import UserError
from raysae.records.run_files import RunFiles
from raysae.sites import Site

if TYPE_CHECKING:
    from raysae.activations import Store
    from raysae.config.source import SourceConfig
    from raysae.transformer.sequence import TokenSequence


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

    def sent(self, device: str) -> "Subject":
        """The same subject for a worker on another process or node, with nothing open."""
        return replace(self, files=self.files.on_this_node(), device=device)

    @cached_property
    def atlas(self) -> Atlas:
        """The atlas. Raises UserError when there is none."""
        return open_atlas(self.place, device=self.device)

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
        store, known = self.store, self.atlas.provenance.get("store_digest")
        if store.computes_rows:
            raise UserError(
                f"{store.place}: its training rows are not on disk (source.live); keep them with "
                "source.keep=yes, or extract them with source.live=false"
            )
        if known not in (None, store.digest):
            raise UserError(
                f"{self.place}: its SAEs were trained on another store (digest {known[:12]}) than "
                f"{store.place} ({store.digest[:12]}); name its own with --store STORE"
            )
        missing = [site for site in self.sites if site not in store.sites]
        if missing:
            raise UserError(
                f"{store.place}: has no rows of {len(missing)} sites of the atlas, such as {missing[0]}"
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
        found.check(force=False)
        return found

    def need_model(self) -> None:
        """Raise UserError unless the transformer is known and its config can be read here."""
        from raysae.extraction.plan import model_spec
        from raysae.transformer.loading import load_model_config

        load_model_config(model_spec(self.source))

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
