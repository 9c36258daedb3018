"""One test pass of one short text in the driver, before any text is read: the real reason, at once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raysae.console.board import console
from raysae.errors import UserError
from raysae.extraction.plan import ExtractionPlan, model_spec

if TYPE_CHECKING:
    from raysae.activations.writer import SiteRows
    from raysae.sites import Site
    from raysae.transformer.sequence import TokenSequence

TEXT = "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42."
"""The short text."""
SHARE_OF_MEMORY = 0.6
"""The test pass is left to the first worker when the weights need more than this share of free memory."""


def test_pass(plan: ExtractionPlan) -> None:
    """Load the model on the CPU, capture one short text's rows as a worker would, and free it again.

    Raises UserError with the reason when the model or its tokenizer cannot be loaded, they do not fit
    each other or the context, or the hookpoint cannot be read. A model that is large for this machine's
    memory is only announced: the first worker makes the same checks.
    """
    from raysae.transformer.capture import Capturer
    from raysae.transformer.loading import load_model, load_tokenizer

    spec, source = model_spec(plan.readable), plan.source
    tokenizer = load_tokenizer(spec)
    if _is_too_large(plan):
        return
    try:
        with without_bars():
            model = load_model(spec)
        capturer = Capturer(
            model, hookpoint=source.hookpoints, layers=plan.layers, dtype=source.dtype
        )
        _check_vocabulary(capturer.embedding_rows, len(tokenizer), plan)
        _check_reach(capturer.reach, plan)
        ids = tokenizer(TEXT, truncation=True, max_length=source.context_length)["input_ids"]
        _check_widths(capturer.rows([_sequence(ids)], ["all"]), plan)
    except UserError as error:
        raise UserError(_with_model(str(error), plan)) from None
    except MemoryError as error:
        raise UserError(_with_model(f"not enough memory for a test pass ({error})", plan)) from None
    if not capturer.padding:
        console.print(
            "  the model's rows change with padding, so texts run in batches of equal length (slower)"
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _is_too_large(plan: ExtractionPlan) -> bool:
    """Whether the weights would fill this machine's memory; says so."""
    import torch

    from raysae.training.memory import free_bytes
    from raysae.transformer.loading import empty_model, load_model_config

    spec, free = model_spec(plan.readable), free_bytes("cpu")
    model = empty_model(load_model_config(spec), spec)
    values = sum(parameter.numel() for parameter in model.parameters())
    needed = values * getattr(torch, plan.source.model_dtype).itemsize
    if free is None or needed <= SHARE_OF_MEMORY * free:
        return False
    console.print(
        f"  no test pass here: {plan.source.model} needs {needed / 1e9:.0f} GB of memory, and "
        f"{free / 1e9:.0f} GB are free; the first worker checks it"
    )
    return True


def _check_vocabulary(rows: int | None, tokens: int, plan: ExtractionPlan) -> None:
    """Tell when the tokenizer has ids beyond the embedding; a text that uses one is refused later."""
    if rows is not None and tokens > rows:
        console.print(
            f"  note: {plan.source.model}'s tokenizer has {tokens} tokens and its embedding {rows} rows; "
            "a text with a token beyond them is refused"
        )


def _check_reach(reach: int | None, plan: ExtractionPlan) -> None:
    if reach is not None and plan.source.context_length > reach:
        raise UserError(
            f"source.context_length is {plan.source.context_length}; its embedding of positions "
            f"reaches {reach} tokens"
        )


def _check_widths(rows: "Mapping[Site, SiteRows]", plan: ExtractionPlan) -> None:
    """Raise UserError when the rows of some hookpoints have another width than the store's."""
    widths = {site.hookpoint: one.activation_ND.shape[1] for site, one in rows.items()}
    if any(width != plan.d_in for width in widths.values()):
        found = ", ".join(f"{name or plan.source.hookpoint} {n}" for name, n in widths.items())
        raise UserError(
            f"source.hookpoint: the rows have other widths than the model's d_in {plan.d_in:,}: {found}; "
            "a store holds rows of one width, so extract these hookpoints into stores of their own"
        )


def _sequence(ids: list[int]) -> "TokenSequence":
    import numpy as np

    from raysae.transformer.sequence import TokenSequence

    token_id = np.array(ids, dtype=np.int32)
    unknown, every = np.full(len(ids), -1, dtype=np.int32), np.ones(len(ids), dtype=bool)
    return TokenSequence(0, [0], TEXT, token_id, unknown, unknown, every, np.zeros_like(token_id))


def _with_model(reason: str, plan: ExtractionPlan) -> str:
    named = plan.source.model in reason
    return reason if named else f"source.model {plan.source.model!r}: {reason}"
