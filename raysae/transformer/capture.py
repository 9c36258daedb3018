"""Capturing a transformer's activations: one forward pass gives all layers, at chosen tokens.

Shapes: S sequences, T tokens, D d_in, N rows.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysae.activations.schema import ITEM_BYTES
from raysae.activations.writer import SiteRows
from raysae.sites import Position, Site, hookpoints_in_sites
from raysae.transformer.batching import in_order, length_batches, places_in_batch
from raysae.transformer.hookpoints import Tap, Taps, check_sums, find_taps
from raysae.transformer.host_copies import SiteTensors, host_copies, sent
from raysae.transformer.layouts import Batch, batch_first, check_layout, tensors_of, tensors_taken
from raysae.transformer.sequence import TokenSequence
from raysae.transformer.steadiness import AllRows, check_same_rows, needs_no_mask, settle_padding
from raysae.transformer.towers import (
    find_tower,
    input_embedding,
    is_declared_causal,
    longest_text,
    run_tower,
    test_ids,
)
from raysae.transformer.vocabulary import check_token_ids

FORWARD_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Tokens per forward pass, padding included."""
BATCH_BYTES = 2**30
"""Rows of a batch take about so many bytes at most on a GPU, and twice that in pinned memory."""
CHECKED_TOKENS = 64
"""At most so many tokens of a text are used to check the sum of a block's parts."""

Index = tuple[Tensor, Tensor]
"""The row and column index of some tokens of a batch."""
Place = tuple[str | None, int]
"""A hookpoint, as sites name it, and a layer."""


class Capturer:
    """A loaded transformer that captures activations at ``hookpoint`` of ``layers``, or at several.

    The rows have the store's ``dtype``. Short test passes find where each hookpoint is read. With
    ``unmasked`` (None: on GPUs only) padding is not masked where the model only ever looks back, so that
    attention needs no mask of its own. Raises UserError when the model has no such hookpoint, or its
    rows change with the other texts of a batch.
    """

    def __init__(
        self, model: Any, *, hookpoint: str | Sequence[str], layers: Iterable[int], dtype: str,
        unmasked: bool | None = None,
    ):  # fmt: skip
        self.model = model.eval().requires_grad_(False)
        names = (hookpoint,) if isinstance(hookpoint, str) else tuple(hookpoint)
        self.hookpoint, self.dtype = ", ".join(names), dtype
        self.tower = find_tower(model)
        self._every_layer = self._layers = tuple(layers)
        self._last = False
        self.masked = True
        self._hookpoints = hookpoints_in_sites(names)
        """How sites name the hookpoints: the only one has no name in them."""
        self._taps: dict[str | None, Taps] = {
            named: find_taps(model, self.tower, name, self._layers)
            for named, name in zip(self._hookpoints, names, strict=True)
        }
        self._device = next(model.parameters()).device
        self._checked = False
        weight = getattr(input_embedding(model), "weight", None)
        self.embedding_rows = None if weight is None else weight.shape[0]
        self.reach = longest_text(model, self.tower)
        """The tokens that the model's embeddings of positions reach; None when it has none."""
        self._computes = next(model.parameters()).dtype
        wanted = self._device.type == "cuda" if unmasked is None else unmasked
        self.masked = not (wanted and is_declared_causal(self.tower) and self._needs_no_mask())
        """Whether padding is masked. Rows of padding are dropped either way."""
        self.padding = not self.masked or all(
            settle_padding(self._rows_of_texts(one), test_ids(model), self._computes)
            for one in self._hookpoints
        )
        """Whether texts of several lengths may run in one batch."""

    def _needs_no_mask(self) -> bool:
        return all(
            needs_no_mask(
                self._rows_of_texts(one), self._rows_of_texts(one, masked=False),
                test_ids(self.model), len(self._layers), self._computes,
            )
            for one in self._hookpoints
        )  # fmt: skip

    def only(
        self, layers: Collection[int], hookpoints: Collection[str | None] | None = None
    ) -> "Capturer":
        """Read these layers alone from now on, and compute no block above the highest of them.

        ``hookpoints`` are those to read, as sites name them; None: all. The rows are the same to the
        bit. Returns itself.
        """
        named = self._taps if hookpoints is None else hookpoints
        self._hookpoints = tuple(name for name in self._taps if name in named)
        self._layers = tuple(layer for layer in self._every_layer if layer in layers)
        self._last = True
        return self

    @torch.inference_mode()
    def rows(
        self,
        sequences: Sequence[TokenSequence],
        positions: Iterable[Position],
        patterns: Iterable[str] = (),
        report: Callable[[int], None] = lambda tokens: None,
    ) -> dict[Site, SiteRows]:
        """The rows ``[N, d_in]`` of every hookpoint and layer at every position, in the order of
        ``sequences``: one forward pass reads them all.

        Sequences run in right-padded batches of similar length. Only the rows at ``positions`` stay in
        memory. ``patterns`` are the names of the patterns that the sequences were made with. ``report``
        is called with the number of tokens of each batch. Raises UserError when a value is too large
        for ``dtype``, a token is not in the model's vocabulary, or, on the first batch, when a text has
        other rows alone than in the batch, or the parts of a block do not add up.
        """
        if self.embedding_rows is not None:
            for sequence in sequences:
                check_token_ids(sequence.token_id, self.embedding_rows, sequence.sequence)
        names = list(patterns)
        picks = {p: [sequence.places(p, names) for sequence in sequences] for p in positions}
        sites = [
            Site(layer, position, hookpoint)
            for layer in self._layers
            for position in picks
            for hookpoint in self._hookpoints
        ]
        captured: dict[Site, list[Tensor]] = {site: [] for site in sites}
        tokens, copies = deque[int](), host_copies(self.dtype, self._device)
        batches = list(length_batches(sequences, self._most_tokens(sequences, picks), self.padding))

        def keep(arrived: list[SiteTensors]) -> None:
            for rows in arrived:
                for site in sites:
                    captured[site].append(rows[site])
                report(tokens.popleft())

        for batch in batches:
            ids = [sequences[i].token_id for i in batch]
            where = {p: places_in_batch([places[i] for i in batch]) for p, places in picks.items()}
            rows = self._capture(ids, where)
            self._check_first(ids, where, rows)
            tokens.append(sum(len(sequences[i]) for i in batch))
            keep(copies.take({site: rows[site] for site in sites}))
        keep(copies.rest())
        order = [i for batch in batches for i in batch]
        return {
            site: in_order(torch.cat(captured.pop(site)), order, sequences, picks[site.position])
            for site in sites
        }

    def _most_tokens(
        self, sequences: Sequence[TokenSequence], picks: Mapping[Position, list[NDArray[np.int64]]]
    ) -> int:
        """Tokens of a batch, at most: on a GPU not more than have rows of ``BATCH_BYTES``."""
        most = FORWARD_TOKENS[self._device.type]
        if self._device.type != "cuda":
            return most
        rows = sum(len(places) for every in picks.values() for places in every)
        width = len(self._layers) * len(self._hookpoints) * self.tower.d_in * ITEM_BYTES[self.dtype]
        tokens = sum(map(len, sequences))
        return min(most, max(BATCH_BYTES * tokens // max(rows * width, 1), 1))

    def _capture(
        self, ids: list[NDArray[np.int32]], where: Mapping[Position, Index], masked: bool = True
    ) -> dict[Site, Tensor]:
        """One forward pass: the rows ``[N, D]`` of every hookpoint and layer at the tokens ``where``."""
        masked = masked and self.masked
        width = max(map(len, ids))
        input_ids = np.zeros((len(ids), width), dtype=np.int64)  # the padding is masked
        mask = np.zeros_like(input_ids)
        for number, row in enumerate(ids):
            input_ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        rows: dict[Site, Tensor] = {}
        batch = Batch(len(ids), width)
        ids_BT = sent(torch.from_numpy(input_ids), self._device)
        mask_BT = sent(torch.from_numpy(mask), self._device) if masked else None
        there = {
            p: (sent(row, self._device), sent(at, self._device)) for p, (row, at) in where.items()
        }
        with torch.inference_mode(), self._hooks(batch, there, rows), suppress(_Reached):
            run_tower(self.tower.forward, ids_BT, mask_BT, masked=masked)
        return rows

    @contextmanager
    def _hooks(
        self, batch: Batch, where: Mapping[Position, Index], rows: dict[Site, Tensor]
    ) -> Iterator[None]:
        """Within the block, the taps add their rows to ``rows``; where nothing above is wanted, the
        last of them ends the pass."""
        every = [
            (hookpoint, layer, tap)
            for hookpoint in self._hookpoints
            for layer in self._layers
            for tap in self._taps[hookpoint].by_layer[layer]
        ]
        left = len(every)

        def add(place: Place, tap: Tap, given: Tensor) -> None:
            nonlocal left
            hookpoint, layer = place
            activation_BTD = self._read(given, tap, batch, hookpoint or self.hookpoint)
            for position, index in where.items():
                picked_ND = activation_BTD[index]  # a copy: later code may change the tensor
                if tap.factor != 1.0:
                    picked_ND = picked_ND.float() * tap.factor
                site = Site(layer, position, hookpoint)
                before = rows.get(site)
                rows[site] = picked_ND if before is None else before + picked_ND
            left -= 1
            if self._last and not left:
                raise _Reached

        handles = [_attach(tap, (hookpoint, layer), add) for hookpoint, layer, tap in every]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _read(self, given: Tensor, tap: Tap, batch: Batch, hookpoint: str) -> Tensor:
        check_layout(
            given, tap.layout, batch, self.tower.d_in, f"{type(self.model).__name__}: {hookpoint}"
        )
        return batch_first(given, tap.layout, batch)

    def _rows_of_texts(self, hookpoint: str | None, masked: bool = True) -> AllRows:
        """What gives all rows of each text in one batch, of all layers: ``[layers * T, D]`` a text."""

        def run(ids_BT: list[Tensor]) -> list[Tensor]:
            ids = [row.numpy().astype(np.int32) for row in ids_BT]
            where: dict[Position, Index] = {
                number: places_in_batch(
                    [np.arange(len(row) * (number == n)) for n, row in enumerate(ids)]
                )
                for number in range(len(ids))
            }
            rows = self._capture(ids, where, masked)
            return [
                torch.cat([rows[Site(layer, n, hookpoint)] for layer in self._layers])
                for n in range(len(ids))
            ]

        return run

    def _check_first(
        self,
        ids: list[NDArray[np.int32]],
        where: Mapping[Position, Index],
        rows: Mapping[Site, Tensor],
    ) -> None:
        """On the first batch: the shortest text has the same rows alone, and the blocks' parts add up."""
        if self._checked:
            return
        self._checked = True
        longest = ids[-1][:CHECKED_TOKENS].astype(np.int64)
        if len(longest) > 3:
            texts = torch.from_numpy(np.stack([longest, np.roll(longest, 1), longest]))
            sublayers = {
                layer: x for taps in self._taps.values() for layer, x in taps.sublayers.items()
            }
            check_sums(self.tower, sublayers, texts)
        here = {p: (row[row == 0], column[row == 0]) for p, (row, column) in where.items()}
        alone = self._capture(ids[:1], here)
        first = {p: row == 0 for p, (row, _) in where.items()}
        batch = {site: rows[site][first[site.position].to(rows[site].device)] for site in alone}
        for hookpoint in self._hookpoints:
            sites = [site for site in alone if site.hookpoint == hookpoint]
            check_same_rows(
                torch.cat([alone[site] for site in sites]),
                torch.cat([batch[site] for site in sites]),
                len(ids),
                self._computes,
            )


class _Reached(Exception):
    """All rows that are wanted were taken; what comes after need not run."""


def weights_hash(model: nn.Module) -> str:
    """The sha256 of the names and bytes of all weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _attach(tap: Tap, place: Place, add: Callable[[Place, Tap, Tensor], None]) -> Any:
    if tap.is_input:

        def take_input(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            add(place, tap, tensors_taken(args, kwargs)[tap.index])

        return tap.module.register_forward_pre_hook(take_input, with_kwargs=True)

    def take_output(_module: nn.Module, _args: tuple, output: Any) -> None:
        add(place, tap, list(tensors_of(output))[tap.index])

    return tap.module.register_forward_hook(take_output)
