"""The plan of an extraction: checked before any work begins."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from raysae.activations.manifest import MANIFEST_FILE, manifest_of, read_manifest
from raysae.activations.store import Store, open_store
from raysae.activations.store_files import LocalFiles, StoreFiles, files_at
from raysae.config import Recipe
from raysae.config.places import source_in
from raysae.config.source import SourceConfig
from raysae.console.board import console
from raysae.errors import UserError
from raysae.identity import differences, flat
from raysae.sites import Position, Site, hookpoints_in_sites
from raysae.storage.file_systems import place_of
from raysae.storage.files import json_from, refuse_links_outside, remove_folder
from raysae.storage.remote import bind, discard, join
from raysae.transformer.loading import ModelSpec, load_model_config
from raysae.transformer.model_config import (
    longest_context,
    needed_setting,
    refuse_encoder_decoder,
)
from raysae.transformer.sequence import TokenRules
from raysae.transformer.texts import TextSpec

WORK_FOLDER = "extraction"
"""A folder in the store's folder; it exists until the extraction is finished."""
HEAD_ROWS, HEAD_SHARE = 65_536, 0.02
"""A live store's head has about the smaller of so many training rows at a site and this share of them."""
OTHER_COLUMNS_BYTES = 16
"""Bytes of a stored row beside its activation."""
NOT_CONTENT = ("keep",)
"""Settings of ``source`` that do not change the rows or their order."""
ADDED = {"live": False, "max_norm_ratio": None, "shuffled": None}
"""Settings of ``source`` that count only where they are not as given here, so that other stores stay as
they were."""
PREFIX = "source."
"""The section of the recipe that an extraction is described in."""
IDENTITY_FILE = "identity.json"
SPLIT_BY = "split_by"
"""In the manifest's ``dataset``: what decides a text's split, ``text`` or a column."""
REFUSED_FILE = "refused.txt"
"""This file exists when activations were refused: the extraction cannot finish with the same recipe."""


@dataclass(frozen=True)
class ExtractionPlan:
    """The extraction of a checked recipe."""

    source: SourceConfig
    """As in the recipe."""
    readable: SourceConfig
    """The same, with absolute paths, which any worker can read."""
    seed: int
    folder: Path
    layers: tuple[int, ...]
    architecture: str
    model_layers: int
    d_in: int
    uri: str | None = None
    """Where the store will be, when that is no folder; ``folder`` is then this node's copy, in which the
    records and the shards in work lie."""
    copy_store: bool = False
    """Whether a finished store at a URI is copied to this node before it is read."""
    shuffled: int | None = None
    """The seed by which the model's weights are shuffled; None: they are not."""

    @property
    def place(self) -> str:
        """The store's folder or URI, for messages."""
        return str(self.folder) if self.uri is None else place_of(self.uri)

    def files(self) -> StoreFiles:
        """The store's files as they are now. Raises UserError when a URI cannot be reached."""
        return files_at(self.uri or self.folder)

    def opened(self) -> Store:
        """The finished store. Raises UserError as ``open_store`` does."""
        return open_store(self.uri or self.folder, copy=self.copy_store)

    def on_this_node(self) -> "ExtractionPlan":
        """The same plan with this node's local copy, ready to be worked in, where the store is at a URI.

        Raises UserError when the URI cannot be reached.
        """
        return self if self.uri is None else replace(self, folder=bind(self.uri))

    @property
    def positions(self) -> list[Position]:
        """The positions, sorted: numbers, then names."""
        return [site.position for site in sorted(Site(0, p) for p in self.source.positions)]

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """The hookpoints, in the order of the recipe."""
        return self.source.hookpoints

    @property
    def sites(self) -> list[Site]:
        """The sites, by layer, position and hookpoint."""
        names = hookpoints_in_sites(self.hookpoints)
        pairs = product(self.layers, self.positions, names)
        return sorted(Site(layer, position, name) for layer, position, name in pairs)

    @property
    def sites_at_a_position(self) -> int:
        """How many sites have rows of the same tokens: layers times hookpoints."""
        return len(self.layers) * len(self.hookpoints)

    @property
    def work(self) -> Path:
        """The folder of the extraction's records, until it is finished."""
        return self.folder / WORK_FOLDER

    def identity(self) -> dict[str, Any]:
        """Everything that decides the store's content; it identifies the store.

        What is in ``ADDED`` is named only where it is set, so that other stores are written as before.
        """
        every = self._identity()
        unset = {key for key, value in ADDED.items() if every[key] == value}
        return {key: value for key, value in every.items() if key not in unset}

    def differences(self, found: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The settings in which the source of another store or extraction differs from this plan's, as
        pairs (found, this plan's). Settings that did not exist then count as their defaults."""
        defaults = {**flat(SourceConfig().model_dump(mode="json")), "shuffled": None}
        return differences(flat(found), flat(self._identity()), defaults)

    def _identity(self) -> dict[str, Any]:
        source = self.source.model_dump(mode="json", exclude=set(NOT_CONTENT))
        return {**source, "seed": self.seed, "shuffled": self.shuffled}


def plan_shuffled(recipe: Recipe, sites: Sequence[Site], seed: int, folder: str) -> ExtractionPlan:
    """The extraction at ``sites`` of the recipe's texts by its model with weights shuffled by ``seed``.

    Its store lies in the run, in ``folder``. It is in float32: nobody knows how large the activations of
    such a model are. Raises UserError as ``plan_extraction`` does.
    """
    plan, layers = plan_extraction(recipe), tuple(sorted({site.layer for site in sites}))
    positions = tuple(dict.fromkeys(site.position for site in sites))
    changed = {"layers": layers, "positions": positions, "dtype": "float32", "live": False}
    return replace(
        plan, source=plan.source.model_copy(update=changed),
        readable=plan.readable.model_copy(update=changed), layers=layers, shuffled=seed,
        folder=recipe.run_folder / folder, copy_store=False,
        uri=None if recipe.run_uri is None else join(recipe.run_uri, folder),
    )  # fmt: skip


def plan_extraction(recipe: Recipe) -> ExtractionPlan:
    """Check the recipe's source and plan its extraction.

    Raises UserError when the model's configuration cannot be read or is of a kind that raysae does not
    read, the model lacks a layer, or the context is too long for it.
    """
    source = recipe.source
    assert source is not None, "planned only for recipes with a source"
    readable = with_absolute_paths(source, recipe.base)
    if source.trust_remote_code:
        console.print(
            f"{PREFIX}trust_remote_code: Python code that lies beside {source.model} may run here",
            markup=False,
        )
    config, name = load_model_config(model_spec(readable)), f"{PREFIX}model {source.model!r}"
    refuse_encoder_decoder(config, name)
    model_layers = needed_setting(config, "num_hidden_layers", name)
    _check_layers(source, model_layers)
    _check_context(source, config)
    layers = range(model_layers) if source.layers == "all" else sorted(source.layers)
    return ExtractionPlan(
        source=source,
        readable=readable,
        seed=recipe.seed,
        folder=recipe.store_folder,
        layers=tuple(layers),
        architecture=(config.architectures or [type(config).__name__])[0],
        model_layers=model_layers,
        d_in=needed_setting(config, "hidden_size", name),
        uri=recipe.store_uri,
        copy_store=recipe.resources.copy_store,
    )


def model_spec(source: SourceConfig) -> ModelSpec:
    """The transformer that a recipe's source names."""
    return ModelSpec(
        source.model, source.revision, source.model_dtype, source.trust_remote_code, prefix=PREFIX
    )


def text_spec(source: SourceConfig) -> TextSpec:
    """The texts that a recipe's source names."""
    return TextSpec(
        source.dataset, source.dataset_config, source.dataset_split, source.dataset_revision,
        source.text, source.chat_column, source.split_by, source.sequences, prefix=PREFIX,
    )  # fmt: skip


def token_rules(source: SourceConfig) -> TokenRules:
    """How a recipe's source wants its texts as tokens."""
    return TokenRules(
        source.context_length, source.packing, source.special_tokens, source.used_patterns,
        source.validation, source.test, source.cut, source.repeats, prefix=PREFIX,
    )  # fmt: skip


def with_absolute_paths(source: SourceConfig, base: Path) -> SourceConfig:
    """The source with paths from ``base`` as absolute ones: workers have other working folders."""
    return source.model_copy(update=source_in(base, source.model_dump()))


def existing_store(plan: ExtractionPlan) -> Store | None:
    """The finished store of this plan; None when there is none yet, or when its extraction was
    interrupted.

    Raises UserError when the folder holds another store, an unfinished one, or other files.
    """
    if plan.uri is not None:
        return _existing_at_uri(plan)
    if plan.folder.exists() and not plan.folder.is_dir():
        raise UserError(f"{plan.folder}: is a file; name a folder for the store with store=FOLDER")
    refuse_links_outside(plan.folder, "the store")
    if (plan.folder / MANIFEST_FILE).exists():
        _refuse_other(plan, read_manifest(plan.folder).source, "a store made from another source")
        remove_folder(plan.work)  # left when the process was killed just after the manifest
        return _finished(plan)
    if (plan.work / IDENTITY_FILE).exists():
        if any(plan.work.glob("shard-*.json")) and not (plan.work / REFUSED_FILE).exists():
            unfinished = read_identity(plan)
            _refuse_other(plan, unfinished, "an unfinished extraction of another source")
    elif plan.folder.exists() and {path.name for path in plan.folder.iterdir()} - {WORK_FOLDER}:
        raise UserError(
            f"{plan.folder}: holds files but no activation store; name another folder with "
            "store=FOLDER"
        )
    return None


def _existing_at_uri(plan: ExtractionPlan) -> Store | None:
    """As ``existing_store``, for a URI."""
    assert plan.uri is not None, "asked only then"
    files = plan.files()
    there, work = set(files.names()), f"{WORK_FOLDER}/"
    if MANIFEST_FILE in there:
        _refuse_other(plan, manifest_of(files).source, "a store made from another source")
        if any(
            name.startswith(work) for name in there
        ):  # the process was killed just after the manifest
            with suppress(UserError, OSError):  # a place that may only be read
                discard(bind(plan.uri) / WORK_FOLDER)
        return _finished(plan)
    if f"{work}{IDENTITY_FILE}" in there:
        begun = any(re.fullmatch(rf"{work}shard-\d+\.json", name) for name in there)
        if begun and f"{work}{REFUSED_FILE}" not in there:
            unfinished = read_identity(plan, files)
            _refuse_other(plan, unfinished, "an unfinished extraction of another source")
    elif any(not name.startswith(work) for name in there):
        raise UserError(
            f"{plan.place}: holds files but no activation store; name another URI with store=URI"
        )
    return None


def _finished(plan: ExtractionPlan) -> Store:
    store = plan.opened()
    if SPLIT_BY not in (store.manifest.dataset or {}):
        console.print(
            f"{plan.place}: an earlier version split it by row numbers, so a text that repeats may be in "
            "train and held out; to mend that, extract it again into another folder (store=FOLDER)",
            markup=False,
        )
    return store


def read_identity(plan: ExtractionPlan, files: StoreFiles | None = None) -> dict[str, Any]:
    """What the unfinished extraction in the plan's folder, or among ``files``, is made from. Raises
    UserError when the file that says so is damaged."""
    found: Any
    file = (files or LocalFiles(plan.folder)).file(f"{WORK_FOLDER}/{IDENTITY_FILE}")
    try:
        found = json_from(str(file), file.size(), file.content)
    except UserError as error:
        raise _unknown(plan, str(error)) from None
    if not isinstance(found, dict):
        raise _unknown(plan, f"{file}: holds no keys and values; the file was damaged or altered")
    return found


def _unknown(plan: ExtractionPlan, reason: str) -> UserError:
    return UserError(
        f"{reason}; without it nobody knows what the unfinished extraction is of: remove {plan.place}, "
        "or name another folder with store=FOLDER"
    )


def _check_layers(source: SourceConfig, there: int) -> None:
    wanted = () if source.layers == "all" else source.layers
    beyond = [layer for layer in wanted if not 0 <= layer < there]
    if beyond:
        raise UserError(
            f"source.layers: {source.model!r} has {there} layers, 0 to {there - 1}; "
            f"found {', '.join(map(str, beyond))}"
        )


def _check_context(source: SourceConfig, config: Any) -> None:
    longest = longest_context(config)
    if longest is not None and source.context_length > longest:
        raise UserError(
            f"source.context_length is {source.context_length}; {source.model!r} reads at most "
            f"{longest} tokens"
        )


def _refuse_other(plan: ExtractionPlan, found: dict[str, Any], what: str) -> None:
    different = plan.differences(found)
    if different:
        raise UserError(
            f"{plan.place}: holds {what}; name another folder with store=FOLDER, or remove it\n"
            + "\n".join(
                f"  {key}: there {there!r}, asked for {wanted!r}"
                for key, (there, wanted) in sorted(different.items())
            )
        )
