"""What is refused of a live recipe before any work, and what an epoch over live data costs."""

import math

from raysae.activations import Site, Store
from raysae.activations.live import check_live_memory, live_memory
from raysae.activations.manifest import MANIFEST_FILE, read_manifest
from raysae.activations.schema import ITEM_BYTES
from raysae.config import Recipe
from raysae.console.board import console
from raysae.errors import UserError
from raysae.extraction.keeping import decide, decide_keep
from raysae.extraction.plan import ExtractionPlan, model_spec
from raysae.pipeline.estimate import configs_of, existing_parent, training_rows, whole_store_bytes
from raysae.pipeline.live_cost import FLOP_PER_PARAMETER, model_size
from raysae.training import TrainingConfig
from raysae.training.memory import free_bytes


def is_live(recipe: Recipe) -> bool:
    """Whether a recipe's training rows are computed while training."""
    return recipe.source is not None and recipe.source.live


def check_live_store(recipe: Recipe) -> None:
    """Raise UserError when the store of a live recipe is a given one: at a URI, or imported."""
    if not is_live(recipe):
        return
    other = "set source.live=false, or name another folder with store=FOLDER"
    if recipe.store_uri is not None:
        raise UserError(
            f"source.live: store={recipe.store} is a given store, and live data are computed from texts, "
            f"beside a store in a folder; {other}"
        )
    if (recipe.store_folder / MANIFEST_FILE).is_file():
        provenance = read_manifest(recipe.store_folder).provenance
        if provenance != "model":
            raise UserError(
                f"source.live: {recipe.store_folder} holds a given store ({provenance}), and live data "
                f"are computed from texts; {other}"
            )


def check_live(recipe: Recipe, where: Store | ExtractionPlan, sites: list[Site]) -> None:
    """Raise UserError when a live recipe cannot work at ``sites``; say what its epochs cost."""
    if not is_live(recipe) or (isinstance(where, Store) and not where.computes_rows):
        return
    check_live_budget(recipe, where, sites)
    rows = training_rows(where, sites[0])
    shuffle_rows = max(one.shuffle_rows for one in trainings(recipe, where.d_in))
    needed = live_memory(shuffle_rows, rows or shuffle_rows, _row_bytes(where), len(sites))
    if recipe.resources.address is None:  # on a cluster, the nodes' memory counts
        check_live_memory(needed, free_bytes("cpu"), shuffle_rows, len(sites))
    _check_keep(recipe, where)
    if isinstance(where, ExtractionPlan):
        _tell_epochs(recipe, where, rows)


def check_live_rows(recipe: Recipe, store: Store, sites: list[Site]) -> None:
    """Of a live store that is there, check the budget by its exact figures, and say whether its training
    rows are kept. Raises UserError as ``check_live`` does."""
    if recipe.source is None or not store.computes_rows:
        return
    check_live_budget(recipe, store, sites)
    console.print(f"Live: {decide_keep(store, recipe.source.keep)}")


def check_live_budget(recipe: Recipe, where: Store | ExtractionPlan, sites: list[Site]) -> None:
    """Raise UserError when ``training.tokens`` or ``source.max_tokens`` does not hold the epochs."""
    source = recipe.source
    assert source is not None
    counted = isinstance(where, Store) or isinstance(sites[0].position, int)
    rows = training_rows(where, sites[0]) if counted else None  # of pools not known before
    for training in trainings(recipe, where.d_in):
        epochs, tokens = training.epochs, training.tokens
        if epochs > 1 and rows is not None and tokens is not None and tokens < epochs * rows:
            raise UserError(
                f"training.epochs is {epochs}, which over live data are {epochs} passes of about "
                f"{rows:,} rows, and training.tokens={tokens:,} holds {tokens / rows:.1f}; set "
                f"training.epochs=1, or training.tokens=null, or to at least {epochs * rows:,}"
            )
        read = _tokens_of_a_pass(where)
        if (
            epochs > 1
            and source.max_tokens is not None
            and read is not None
            and source.keep == "no"
        ):
            _refuse_tokens(epochs, source.max_tokens, read)


def trainings(recipe: Recipe, d_in: int) -> list[TrainingConfig]:
    """The training settings that the search may propose."""
    listed = recipe.sweep.sampler in ("list", "grid")
    configs = configs_of(recipe, d_in if listed else None)
    return [recipe.with_parameters(one)[1] for one in configs]


def live_epochs(recipe: Recipe, d_in: int, rows: int) -> int:
    """The most passes over ``rows`` training rows that a config of the search makes."""
    return max(training.passes(rows) for training in trainings(recipe, d_in))


def _refuse_tokens(epochs: int, most: int, read: int) -> None:
    """Raise UserError when the model would read more than ``source.max_tokens`` in all epochs."""
    if epochs * read <= most:
        return
    raise UserError(
        f"training.epochs is {epochs}: over live data the model reads up to {read:,} tokens in each, "
        f"{epochs * read:,} in all, and source.max_tokens={most:,} holds {math.floor(most / read)}; set "
        "training.epochs=1, or source.keep=yes, so that later epochs read from disk"
    )


def _tokens_of_a_pass(where: Store | ExtractionPlan) -> int | None:
    """Tokens that the model reads in a pass; None when they are not known before the texts are read."""
    if isinstance(where, Store):
        return None if where.live is None else where.live.tokens
    return where.source.max_tokens if where.source.sequences is None else None


def _check_keep(recipe: Recipe, where: Store | ExtractionPlan) -> None:
    """Raise UserError when ``source.keep=yes`` and the disk does not hold the rows."""
    if recipe.source is None or recipe.source.keep != "yes":
        return
    if isinstance(where, Store):
        decide_keep(where, "yes")
    else:
        decide("yes", whole_store_bytes(where), existing_parent(where.folder))


def _tell_epochs(recipe: Recipe, plan: ExtractionPlan, rows: int | None) -> None:
    epochs = live_epochs(recipe, plan.d_in, rows) if rows else recipe.training.epochs
    if epochs == 1:
        return
    each = FLOP_PER_PARAMETER * sum(model_size(model_spec(plan.readable)).blocks)
    later = {
        "no": "source.keep=yes would write the rows in the first, and later ones would read them",
        "yes": "source.keep=yes: the first also writes the rows, and later ones read them",
        "auto": "where the disk holds the rows (source.keep=auto), the first also writes them, and later "
        "ones read them",
    }[plan.source.keep]
    console.print(
        f"training.epochs: an epoch over live data is a second pass; {epochs} epochs are {epochs} "
        f"forward passes over the texts for each wave of trials, up to {each:.3g} FLOP a token each "
        f"(--dry-run says how many hours); {later}"
    )


def _row_bytes(where: Store | ExtractionPlan) -> int:
    dtype = where.manifest.dtype if isinstance(where, Store) else where.source.dtype
    return where.d_in * ITEM_BYTES[dtype]
