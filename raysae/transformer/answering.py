"""Answers that a language model writes to questions, greedily, and what number a solution ends with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from raysae.errors import UserError
from raysae.transformer.model_config import longest_context

ANSWER_MARK = "####"
"""What stands before the answer in a solution, as in GSM8K."""
TOGETHER = 250
"""Prompts of a batch."""


def stated_answer(text: str) -> str | None:
    """What follows the last ``####`` of a solution, in its line, without commas and ``$``; None where
    there is none."""
    _, mark, rest = text.rpartition(ANSWER_MARK)
    lines = rest.strip().splitlines()
    return lines[0].strip().replace(",", "").lstrip("$") if mark and lines else None


def can_write(model: Any) -> bool:
    """Whether a model of Hugging Face writes texts."""
    return bool(getattr(model, "can_generate", lambda: False)())


@torch.no_grad()
def written_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    new_tokens: int,
    report: Callable[[int], None] = lambda texts: None,
) -> list[str | None]:
    """What the model writes after each prompt: the likeliest token each time, at most ``new_tokens``.

    Prompts run in batches of ``TOGETHER``, padded on the left; ``report`` is called with the number of
    each. None for a batch whose longest prompt leaves no room in the model's context. Raises UserError
    when the model writes no texts.
    """
    if not can_write(model):
        raise UserError(f"{type(model).__name__}: writes no texts, so it answers no question")
    written: list[str | None] = []
    trained = model.training
    model.eval()
    try:
        for start in range(0, len(prompts), TOGETHER):
            part = list(prompts[start : start + TOGETHER])
            written += _written(model, tokenizer, part, new_tokens)
            report(len(part))
    finally:
        model.train(trained)
    return written


def _written(model: Any, tokenizer: Any, prompts: list[str], new_tokens: int) -> list[str | None]:
    asked = _padded(tokenizer, prompts)
    width, reach = asked["input_ids"].shape[1], longest_context(model.config)
    room = new_tokens if reach is None else min(new_tokens, reach - width)
    if room < 1:
        return [None] * len(prompts)
    device = next(model.parameters()).device
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids_BT = model.generate(
        input_ids=asked["input_ids"].to(device), attention_mask=asked["attention_mask"].to(device),
        max_new_tokens=room, do_sample=False, pad_token_id=pad, temperature=None, top_p=None,
        top_k=None,
    )[:, width:]  # fmt: skip
    return list(tokenizer.batch_decode(ids_BT, skip_special_tokens=True))


def _padded(tokenizer: Any, prompts: list[str]) -> dict[str, torch.Tensor]:
    """The prompts' ids and mask ``[B, T]``, padded on the left; any tokenizer will do."""
    rows = tokenizer(prompts, add_special_tokens=True)["input_ids"]
    rows = [_open(row, tokenizer) for row in rows]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _open(row: list[int], tokenizer: Any) -> list[int]:
    """A prompt's ids without the mark of an end, which some tokenizers put after every text."""
    return row[:-1] if len(row) > 1 and row[-1] == tokenizer.eos_token_id else row
