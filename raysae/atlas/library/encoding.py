"""From texts through the transformer to an atlas's latents, as the extraction read the store's texts.

Shapes: N rows, A active latents of all rows, D d_in, F d_sae.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raysae.atlas.library.files import AtlasFiles
from raysae.atlas.library.index import INDEX_FILE
from raysae.errors import UserError
from raysae.sae import SAE
from raysae.sae.interchange.settings import part
from raysae.sites import Site

if TYPE_CHECKING:  # transformers and pydantic are imported where a text is encoded
    from raysae.activations.manifest import Manifest
    from raysae.activations.writer import SiteRows
    from raysae.config.source import SourceConfig
    from raysae.transformer.capture import Capturer
    from raysae.transformer.sequence import TokenSequence

Text = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a chat: dictionaries with ``role`` and ``content``."""
TOKENS_TOGETHER = 16_384
"""Tokens whose rows of all sites are in memory at a time."""
SHORT_CONTEXT = 128
"""Tokens of a text, at most, where nothing says how many an atlas was made with."""
DENSE_VALUES = 2**26
"""Values of dense latents that are in memory at a time."""


@dataclass(frozen=True)
class Latents:
    """The active latents of one site's rows, in the order of the texts and of their tokens."""

    indices: Tensor
    """``[2, A]``: the row and the number of each active latent, ordered by row."""
    values: Tensor
    """``[A]``, positive."""
    d_sae: int
    sequence: Tensor
    """``[N]``: the number of each row's text."""
    token_index: Tensor
    """``[N]``: each row's place among the tokens of its text, special ones included, from 0."""
    token_id: Tensor
    """``[N]``: the token's id."""

    def __len__(self) -> int:
        return len(self.sequence)

    def dense(self) -> Tensor:
        """All latents, ``[N, d_sae]``, as ``sae.encode`` gives them."""
        dense_NF = self.values.new_zeros(len(self), self.d_sae)
        dense_NF[self.indices[0], self.indices[1]] = self.values
        return dense_NF

    @classmethod
    def joined(cls, parts: "Sequence[Latents]") -> "Latents":
        """The rows of all ``parts`` in one, in their order."""
        shifted, rows = [], 0
        for one in parts:
            shifted.append(one.indices + one.indices.new_tensor([[rows], [0]]))
            rows += len(one)
        columns = [
            torch.cat([getattr(one, name) for one in parts])
            for name in ("sequence", "token_index", "token_id")
        ]
        values = torch.cat([one.values for one in parts])
        return cls(torch.cat(shifted, dim=1), values, parts[0].d_sae, *columns)


def texts_of(texts: Text | Iterable[Text]) -> list[Text]:
    """A list of texts, also of one alone. Raises UserError when there is none."""
    given: list[Any] = [texts] if isinstance(texts, str) else list(texts)
    if not any(given):
        raise UserError("encode: there is no text, or all are empty; give at least one")
    return [given] if isinstance(given[0], Mapping) else given


@torch.no_grad()
def latents_of(sae: SAE, rows: "SiteRows") -> Latents:
    """The latents of a site's rows by its SAE, on the CPU."""
    together = max(1, DENSE_VALUES // sae.config.d_sae)
    indices, values, start = [torch.empty(2, 0, dtype=torch.int64)], [torch.empty(0)], 0
    for x_ND in rows.activation_ND.split(together):
        features_NF = sae.encode(x_ND.to(sae.W_dec))
        active_A2 = features_NF.nonzero()
        values.append(features_NF[active_A2[:, 0], active_A2[:, 1]].cpu())
        indices.append(active_A2.T.cpu() + torch.tensor([[start], [0]]))
        start += len(x_ND)
    columns = (rows.sequence, rows.token_index, rows.token_id)
    return Latents(
        torch.cat(indices, dim=1), torch.cat(values), sae.config.d_sae,
        *(torch.from_numpy(column).long() for column in columns),
    )  # fmt: skip


@dataclass
class Transformer:
    """The transformer that reads the texts, with its tokenizer and what the store was made with."""

    source: "SourceConfig"
    model: Any
    tokenizer: Any
    wanted: Mapping[str, str | None]
    """The sha256 of the store's weights and tokenizer; None where it is not known."""
    found: Mapping[str, set[str]]
    """The sha256 that this model's weights have, and those that its tokenizer may be known by."""
    name: str
    given: tuple[Any, Any]
    """What ``Transformer.of`` was given."""
    capturers: "dict[tuple[tuple[int, ...], frozenset[str | None]], Capturer]" = field(
        default_factory=dict
    )
    """By the layers and hookpoints that they read."""

    @classmethod
    def of(cls, files: AtlasFiles, device: str, model: Any, tokenizer: Any) -> "Transformer":
        """The atlas's transformer, loaded, or ``model`` and ``tokenizer`` where they are given.

        Raises UserError when it cannot be loaded or is not known.
        """
        from raysae.extraction.plan import model_spec
        from raysae.transformer.capture import weights_hash
        from raysae.transformer.loading import load_model, load_tokenizer

        source, given = recorded_source(files, model), (model, tokenizer)
        # code of a model's own runs only for whoever loads the model himself
        spec = replace(model_spec(source), trust_remote_code=False, prefix="")
        if model is None or isinstance(model, str | Path):
            model = load_model(spec).to(device)
        if tokenizer is None:
            tokenizer = load_tokenizer(spec)
        known = part(files.provenance, "model")
        wanted = {
            "weights": known.get("weights_sha256"),
            "tokenizer": known.get("tokenizer_sha256"),
        }
        found = {"weights": {weights_hash(model)}, "tokenizer": _hashes(tokenizer)}
        return cls(source, model, tokenizer, wanted, found, source.model, given)

    def is_for(self, model: Any, tokenizer: Any) -> bool:
        """Whether it was made from the same model and tokenizer."""
        named = isinstance(model, str | Path) and self.given[0] == model
        return (named or self.given[0] is model) and self.given[1] is tokenizer

    def check(self, force: bool) -> None:
        """Raise UserError when the weights or the tokenizer are not the store's, unless ``force``."""
        for what, wanted in self.wanted.items():
            if force or wanted in self.found[what]:
                continue
            if wanted is None:
                raise UserError(
                    f"encode: nothing records which {what} the atlas was made with, so {self.name!r} "
                    "cannot be compared; force=True uses it all the same"
                )
            raise UserError(
                f"encode: {self._differs(what, wanted)}; the latents would mean something else: give the "
                "model of the store (model=FOLDER), or use this one all the same with force=True"
            )

    def check_same(self) -> None:
        """The same for an analysis, which cannot be made to use another model."""
        for what, wanted in self.wanted.items():
            if wanted is None:
                raise UserError(
                    f"nothing records which {what} the store was made with, so {self.name!r} cannot be "
                    "compared; extract the store again"
                )
            if wanted not in self.found[what]:
                raise UserError(
                    f"{self._differs(what, wanted)}; what it would do with these SAEs says nothing: put "
                    "the model of the store back in its place, or extract a store with this one"
                )

    def _differs(self, what: str, wanted: str) -> str:
        found = min(self.found[what])
        return (
            f"the {what} of {self.name!r} have the sha256 {found[:12]}, those that the store was made "
            f"with {wanted[:12]}"
        )

    @torch.inference_mode()
    def rows(self, texts: list[Text], sites: list[Site]) -> "Iterator[dict[Site, SiteRows]]":
        """The rows of ``sites`` for some texts at a time, each site's in the order of the texts.

        Raises UserError when a text cannot be tokenized, or a row cannot be held by the store's dtype.
        """
        capturer = self._capturer(sites)
        positions = sorted({Site(0, site.position) for site in sites})
        names = list(self.source.used_patterns)
        for some in _together(self.sequences(texts)):
            found = capturer.rows(some, [site.position for site in positions], names)
            yield {site: found[site] for site in sites}

    def _capturer(self, sites: list[Site]) -> "Capturer":
        """A capturer that reads the sites' layers, and computes nothing above the highest."""
        from raysae.transformer.capture import Capturer

        layers = tuple(sorted({site.layer for site in sites}))
        hookpoints = frozenset(site.hookpoint for site in sites)
        if (layers, hookpoints) not in self.capturers:
            source = self.source
            made = Capturer(
                self.model, hookpoint=source.hookpoint, layers=layers, dtype=source.dtype
            )
            self.capturers[layers, hookpoints] = made.only(layers, hookpoints)
        return self.capturers[layers, hookpoints]

    def sequences(self, texts: list[Text]) -> "Iterator[TokenSequence]":
        """The texts as the model reads them. Raises UserError when one cannot be tokenized."""
        from raysae.extraction.plan import token_rules
        from raysae.transformer.chat import messages_of
        from raysae.transformer.texts import Document
        from raysae.transformer.tokens import Tokenizer

        documents = [
            Document(number, text)
            if isinstance(text, str)
            else Document(number, "", None, messages_of(list(text), f"text {number}"))
            for number, text in enumerate(texts)
        ]
        rules = replace(  # one sequence a text, numbered in their order
            token_rules(self.source),
            packing=False,
            repeats="keep",
            validation=0.0,
            test=0.0,
            prefix="",
        )
        return Tokenizer(self.tokenizer, rules).sequences(documents)


def recorded_source(files: AtlasFiles, model: Any) -> "SourceConfig":
    """How texts became the store's activations, with ``model`` in place of the recorded one where it is a
    name. Raises UserError when neither recipe nor store nor index says it and no model is given."""
    source = known_source(files)
    if source is None and model is None:
        raise UserError(
            f"encode: {files.folder}: nothing records which model and texts the activations came from "
            f"(they are {files.provenance.get('provenance') or 'of unknown origin'}); give one with "
            "model= and force=True"
        )
    if source is None:
        known = files.provenance
        described = {
            "model": str(part(known, "model").get("id") or "the given model"),
            "hookpoint": known.get("hookpoint") or "resid_post",
            "context_length": known.get("context_length") or SHORT_CONTEXT,
            "positions": sorted({site.position for site in files.saes}, key=str),
            "dtype": "float32",
        }
        source = _validated(described, f"{files.folder}: what it says of its activations")
    name = {"model": str(model), "revision": None} if isinstance(model, str | Path) else {}
    return source.model_copy(update=name)


def known_source(files: AtlasFiles) -> "SourceConfig | None":
    """The recipe's source of an atlas, or else that of its store; None when neither is there.

    Raises UserError when what is there cannot be used.
    """
    if files.source is not None:
        return _validated(files.source, f"{files.folder}: source in {INDEX_FILE}")
    return None if files.run is None else _of_run(files.run)


def _validated(values: Mapping[str, Any], where: str) -> "SourceConfig":
    from pydantic import ValidationError

    from raysae.config.source import SourceConfig

    try:
        return SourceConfig.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {key}: {first['msg']}; export the atlas again") from None


def _of_run(run: Path) -> "SourceConfig | None":
    """The source of a run's recipe, or else of its store's manifest."""
    from raysae.activations.manifest import manifest_of
    from raysae.activations.store_files import files_at
    from raysae.config.loading import load_run
    from raysae.extraction.plan import with_absolute_paths

    recipe = load_run(run)
    if recipe.source is not None:
        return with_absolute_paths(recipe.source, recipe.base)
    with suppress(UserError, OSError, ValueError):
        return source_of_store(manifest_of(files_at(recipe.store_place)), recipe.base)
    return None


def source_of_store(manifest: "Manifest", base: Path) -> "SourceConfig | None":
    """How texts became the rows of a store, with its paths from ``base``; None where a model did not make
    them. Raises UserError when what the manifest says of it is damaged."""
    from raysae.extraction.plan import with_absolute_paths

    if manifest.provenance != "model":
        return None
    known = {key: manifest.source[key] for key in manifest.source if key != "seed"}
    return with_absolute_paths(_validated(known, "source in the store's manifest"), base)


def _together(sequences: "Iterable[TokenSequence]") -> "Iterator[list[TokenSequence]]":
    """The sequences in lists of about ``TOKENS_TOGETHER`` tokens; a text without tokens has no row."""
    some: list[TokenSequence] = []
    tokens = 0
    for sequence in sequences:
        if not len(sequence):
            continue
        some.append(sequence)
        tokens += len(sequence)
        if tokens >= TOKENS_TOGETHER:
            yield some
            some, tokens = [], 0
    if some:
        yield some


def _hashes(tokenizer: Any) -> set[str]:
    """The hashes that a tokenizer may be known by: a used one holds its last truncation and padding."""
    from copy import copy, deepcopy

    from raysae.transformer.tokens import tokenizer_hash

    found, backend = {tokenizer_hash(tokenizer)}, getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        plain = copy(tokenizer)
        plain._tokenizer = deepcopy(backend)
        plain._tokenizer.no_truncation()
        plain._tokenizer.no_padding()
        found.add(tokenizer_hash(plain))
    return found
