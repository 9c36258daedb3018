"""One forward pass, all layers: a transformer's activations at chosen tokens of each text.

Shapes: S sequences, T tokens, D d_in.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysae.activations.hookpoints import find_blocks, find_hook
from raysae.activations.writer import SiteRows
from raysae.sites import Position, Site

FORWARD_TOKENS = 4096


@dataclass(frozen=True)
class Tokens:
    """One tokenized text: what the model reads, and which of it is text and not special tokens."""

    sequence: int
    ids: list[int]
    text_index: list[int]
    """Places in ``ids`` that hold text; a site's position counts along this list."""


class Capturer:
    """A loaded transformer with hooks at ``layers``; gives the rows of every site of a few texts."""

    def __init__(
        self, model: Any, tokenizer: Any, *, hookpoint: str, layers: Sequence[int], context: int
    ):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.hookpoint, self.context = tokenizer, hookpoint, context
        blocks = find_blocks(model, model.config.get_text_config().num_hidden_layers)
        self._hooked = {layer: find_hook(blocks[layer], hookpoint) for layer in layers}

    def tokenize(self, sequences: Sequence[int], texts: list[str]) -> list[Tokens]:
        """Tokens of each text, cut after ``context`` tokens; ``sequences`` holds the texts' ids."""
        encoded = self.tokenizer(
            texts, truncation=True, max_length=self.context, return_special_tokens_mask=True
        )
        masks = encoded["special_tokens_mask"]
        return [
            Tokens(number, ids, [place for place, special in enumerate(mask) if not special])
            for number, ids, mask in zip(sequences, encoded["input_ids"], masks, strict=True)
        ]

    @torch.inference_mode()
    def rows(self, tokens: list[Tokens], positions: Sequence[Position]) -> dict[Site, SiteRows]:
        """The rows of every layer at every position, texts in the order given.

        Texts run in right-padded batches of like length; only the rows asked for are kept.
        """
        picks = {position: [_pick(text, position) for text in tokens] for position in positions}
        kept: dict[Site, list[Tensor]] = {
            Site(layer, position): [] for layer in self._hooked for position in positions
        }
        batches = list(_batches(tokens))
        for batch in batches:
            for layer, activation_STD in self._forward([tokens[i].ids for i in batch]).items():
                for position, places in picks.items():
                    where = _flat([places[i] for i in batch])
                    kept[Site(layer, position)].append(activation_STD[where].float().cpu())
        order = [i for batch in batches for i in batch]
        return {
            site: _site_rows(torch.cat(parts), order, tokens, picks[site.position])
            for site, parts in kept.items()
        }

    def _forward(self, ids: list[list[int]]) -> dict[int, Tensor]:
        width = max(len(row) for row in ids)
        pad = self.tokenizer.pad_token_id or 0  # masked below, so any id does
        input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        device = next(self.model.parameters()).device
        with self._hooks() as outputs:
            self.model.base_model(input_ids=input_ids.to(device), attention_mask=mask.to(device))
        return outputs

    @contextmanager
    def _hooks(self) -> Iterator[dict[int, Tensor]]:
        outputs: dict[int, Tensor] = {}
        handles = [
            _attach(module, self.hookpoint, layer, outputs)
            for layer, module in self._hooked.items()
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()


def weights_hash(model: nn.Module) -> str:
    """sha256 over the names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 over the tokenizer's whole definition (its vocabulary where it is a slow one)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def long_enough(tokens: Tokens, positions: Sequence[Position]) -> bool:
    """Whether a text has a token at every position asked for (any token, for ``all``)."""
    needed = [1 if isinstance(p, str) else (p + 1 if p >= 0 else -p) for p in positions]
    return len(tokens.text_index) >= max(needed)


def _attach(module: nn.Module, hookpoint: str, layer: int, outputs: dict[int, Tensor]) -> Any:
    if hookpoint == "resid_pre":

        def keep_input(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            outputs[layer] = args[0] if args else kwargs["hidden_states"]

        return module.register_forward_pre_hook(keep_input, with_kwargs=True)

    def keep_output(_module: nn.Module, _args: tuple, output: Any) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    return module.register_forward_hook(keep_output)


def _batches(tokens: list[Tokens]) -> Iterator[list[int]]:
    """Texts by length, in batches of at most ``FORWARD_TOKENS`` tokens, padding counted."""
    batch: list[int] = []
    for i in sorted(range(len(tokens)), key=lambda i: (len(tokens[i].ids), i)):
        if batch and (len(batch) + 1) * len(tokens[i].ids) > FORWARD_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _pick(tokens: Tokens, position: Position) -> list[int]:
    """The places in a text's ids that ``position`` means."""
    return tokens.text_index if isinstance(position, str) else [tokens.text_index[position]]


def _flat(places: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Row and column indices of every place of every text of a batch."""
    counts = torch.tensor([len(place) for place in places])
    row = torch.arange(len(places)).repeat_interleave(counts)
    return row, torch.tensor([column for place in places for column in place])


def _site_rows(
    activation_ND: Tensor, order: list[int], tokens: list[Tokens], places: list[list[int]]
) -> SiteRows:
    """The site's rows, taken from the ``order`` in which the texts ran back to their own order."""
    ran = np.repeat(np.array(order), [len(places[i]) for i in order])
    activation_ND = activation_ND[torch.from_numpy(np.argsort(ran, kind="stable"))]
    return SiteRows(
        activation_ND,
        np.repeat([np.int64(text.sequence) for text in tokens], [len(p) for p in places]),
        np.array([i for place in places for i in place], dtype=np.int32),
        np.array(
            [text.ids[i] for text, place in zip(tokens, places, strict=True) for i in place],
            dtype=np.int32,
        ),
    )
