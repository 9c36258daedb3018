"""Capturing a transformer's activations: one forward pass gives all layers, at chosen tokens.

Shapes: S sequences, T tokens, D d_in, N rows.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysae.activations.writer import SiteRows, to_storage
from raysae.sites import Position, Site
from raysae.transformer.hookpoints import find_blocks, find_hook
from raysae.transformer.sequence import TokenSequence

FORWARD_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Tokens per forward pass, padding included."""


class Capturer:
    """A loaded transformer that captures activations at ``hookpoint`` of ``layers``.

    The rows have the store's ``dtype``. Raises UserError when the model has no such hookpoint.
    """

    def __init__(self, model: Any, *, hookpoint: str, layers: Iterable[int], dtype: str):
        self.model = model.eval().requires_grad_(False)
        self.hookpoint, self.dtype = hookpoint, dtype
        blocks = find_blocks(model, model.config.get_text_config().num_hidden_layers)
        self._hooked = {layer: find_hook(blocks[layer], hookpoint) for layer in layers}
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def rows(
        self,
        sequences: Sequence[TokenSequence],
        positions: Iterable[Position],
        patterns: Iterable[str] = (),
        report: Callable[[int], None] = lambda tokens: None,
    ) -> dict[Site, SiteRows]:
        """The rows ``[N, d_in]`` of every layer at every position, in the order of ``sequences``.

        Sequences run in right-padded batches of similar length. Only the rows at ``positions`` stay in
        memory. ``patterns`` are the names of the patterns that the sequences were made with. ``report``
        is called with the number of tokens of each batch. Raises UserError when a value is too large
        for ``dtype``.
        """
        names = list(patterns)
        picks = {p: [sequence.places(p, names) for sequence in sequences] for p in positions}
        sites = [Site(layer, position) for layer in self._hooked for position in picks]
        captured: dict[Site, list[Tensor]] = {site: [] for site in sites}
        batches = list(_batches(sequences, FORWARD_TOKENS[self._device.type]))
        for batch in batches:
            outputs = self._forward([sequences[i].token_id for i in batch])
            where = {p: _flat([places[i] for i in batch]) for p, places in picks.items()}
            for site in sites:
                picked_ND = outputs[site.layer][where[site.position]]
                captured[site].append(to_storage(picked_ND, self.dtype, site).cpu())
            report(sum(len(sequences[i]) for i in batch))
        order = [i for batch in batches for i in batch]
        return {
            site: _site_rows(torch.cat(captured.pop(site)), order, sequences, picks[site.position])
            for site in sites
        }

    def _forward(self, ids: list[NDArray[np.int32]]) -> dict[int, Tensor]:
        width = max(map(len, ids))
        input_ids = np.zeros((len(ids), width), dtype=np.int64)  # the padding is masked
        mask = np.zeros_like(input_ids)
        for number, row in enumerate(ids):
            input_ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        with self._hooks() as outputs:
            self.model.base_model(
                input_ids=torch.from_numpy(input_ids).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
            )
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
    """The sha256 of the names and bytes of all weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _attach(module: nn.Module, hookpoint: str, layer: int, outputs: dict[int, Tensor]) -> Any:
    if hookpoint == "resid_pre":

        def store_input(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            outputs[layer] = args[0] if args else kwargs["hidden_states"]

        return module.register_forward_pre_hook(store_input, with_kwargs=True)

    def store_output(_module: nn.Module, _args: tuple, output: Any) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    return module.register_forward_hook(store_output)


def _batches(sequences: Sequence[TokenSequence], tokens: int) -> Iterator[list[int]]:
    """The indices of the sequences sorted by length, in batches of at most ``tokens`` tokens, padding
    included. A longer sequence is a batch of its own."""
    batch: list[int] = []
    for i in sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i)):
        if batch and (len(batch) + 1) * len(sequences[i]) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _flat(places: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """The row and column index of every place in a batch."""
    row = np.repeat(np.arange(len(places)), [len(place) for place in places])
    return torch.from_numpy(row), torch.from_numpy(np.concatenate(places))


def _site_rows(
    activation_ND: Tensor,
    order: list[int],
    sequences: Sequence[TokenSequence],
    places: list[NDArray[np.int64]],
) -> SiteRows:
    """A site's rows ``[N, D]``, put back from ``order``, in which the sequences ran, to their own."""
    ran = np.repeat(np.array(order), [len(places[i]) for i in order])
    activation_ND = activation_ND[torch.from_numpy(np.argsort(ran, kind="stable"))]
    counts = [len(place) for place in places]
    token_id = [s.token_id[place] for s, place in zip(sequences, places, strict=True)]
    return SiteRows(
        activation_ND,
        np.repeat(np.array([s.sequence for s in sequences], dtype=np.int64), counts),
        np.concatenate(places).astype(np.int32),
        np.concatenate(token_id).astype(np.int32),
    )
