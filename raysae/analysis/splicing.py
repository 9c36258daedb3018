"""Changing activations at a hookpoint while the model runs: SAEs spliced in, ablations, steering.

Hooks stand at the taps that the capture reads, so that what is changed is what a site's rows are.
Shapes: B sequences, T tokens, N rows, D d_in, F d_sae.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from raysae.errors import UserError
from raysae.sae import SAE
from raysae.sites import hookpoints_in_sites
from raysae.transformer.hookpoints import Tap, check_sums, find_taps
from raysae.transformer.layouts import (
    STREAM_NAMES,
    Batch,
    batch_first,
    check_layout,
    tensors_of,
    tensors_taken,
)
from raysae.transformer.towers import Tower, find_tower, run_tower, test_ids

Index = tuple[Tensor, Tensor]
"""The row and column of some tokens of a batch, each ``[N]``."""
Edit = Callable[[Tensor], Tensor]
"""Maps the rows ``[N, D]`` at some tokens to those that take their place."""
CLOSE = 8
"""Rounding units by which a changed row may differ from itself where it is read again."""


@dataclass(frozen=True)
class Change:
    """An edit of the rows of one hookpoint at some tokens."""

    layer: int
    index: Index
    edit: Edit
    hookpoint: str | None = None
    """As sites name it: None where the atlas has one hookpoint."""


def spliced(sae: SAE, error: bool = False) -> Edit:
    """The edit that puts the SAE's reconstruction in the place of rows, or with ``error`` the
    reconstruction and the SAE's error, which together are the rows."""

    def edit(x_ND: Tensor) -> Tensor:
        rows_ND = x_ND.to(sae.W_dec)
        reconstruction_ND, _ = sae.reconstruct(rows_ND)
        if error:
            reconstruction_ND = reconstruction_ND + (rows_ND - reconstruction_ND)
        return reconstruction_ND.to(x_ND)

    return edit


def zeroed(x_ND: Tensor) -> Tensor:
    """The edit of zero ablation."""
    return torch.zeros_like(x_ND)


def replaced_by(mean_D: Tensor) -> Edit:
    """The edit that puts one vector in the place of every row: mean ablation with the mean of a site's
    rows."""
    return lambda x_ND: mean_D.to(x_ND).expand_as(x_ND).clone()


def added(delta_ND: Tensor) -> Edit:
    """The edit that adds to rows: ``[N, D]``, or ``[D]`` to every row (steering)."""
    return lambda x_ND: (x_ND.to(delta_ND) + delta_ND).to(x_ND)


def steered(sae: SAE, feature: int, amount: float) -> Edit:
    """The edit that adds ``amount`` times the feature's decoder direction, of length 1, to every row."""
    direction_D = sae.W_dec[feature].detach()
    return added(amount * direction_D / direction_D.norm())


def read_into(found: list[Tensor]) -> Edit:
    """An edit that changes nothing and appends a copy of the rows to ``found``."""

    def edit(x_ND: Tensor) -> Tensor:
        found.append(x_ND.clone())
        return x_ND

    return edit


class Splicer:
    """A transformer whose activations at ``hookpoints`` of ``layers`` can be changed while it runs.

    Raises UserError, naming model, hookpoint and layer, where a hookpoint cannot be found, or where what
    is written there is not what the model reads on.
    """

    def __init__(self, model: Any, hookpoints: Sequence[str], layers: Sequence[int]):
        self.model = model.eval().requires_grad_(False)
        self.tower: Tower = find_tower(model)
        self.layers = tuple(sorted(layers))
        named = zip(hookpoints_in_sites(tuple(hookpoints)), hookpoints, strict=True)
        self.names: dict[str | None, str] = dict(named)
        taps = {key: find_taps(model, self.tower, n, self.layers) for key, n in self.names.items()}
        self._taps = {key: found.by_layer for key, found in taps.items()}
        for key, found in taps.items():
            self._check_sums(key, found.sublayers)
        self._check_stream()

    def hookpoint(self, key: str | None) -> str:
        """The hookpoint that sites call ``key``."""
        return self.names[key]

    @contextmanager
    def changed(self, changes: Sequence[Change], batch: Batch) -> Iterator[None]:
        """Within the block, forward passes over a batch of this size run with the changes."""
        handles = []
        try:
            for change in changes:
                taps = self._taps[change.hookpoint][change.layer]
                writer = _Writer(change, taps, batch, self)
                handles += [_attach(tap, writer.write) for tap in taps]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def rows(self, given: Tensor, tap: Tap, batch: Batch, change: Change) -> Tensor:
        """A tap's tensor as ``[B, T, D]``. Raises UserError when its shape is not the test pass's."""
        place = self._place(change.hookpoint, change.layer)
        check_layout(given, tap.layout, batch, self.tower.d_in, place)
        return batch_first(given, tap.layout, batch)

    def _place(self, key: str | None, layer: int) -> str:
        return f"{type(self.model).__name__}: {self.names[key]} of layer {layer}"

    def _check_sums(self, key: str | None, sublayers: dict[int, Any]) -> None:
        """With halved rows a block's output must still be its input plus what its parts add."""
        ids_BT = test_ids(self.model)
        changes = [Change(layer, _every(ids_BT), _halved, key) for layer in sublayers]
        try:
            with self.changed(changes, Batch(*ids_BT.shape)):
                check_sums(self.tower, sublayers, ids_BT)
        except UserError as error:
            where = f"{type(self.model).__name__}: {self.names[key]}"
            raise UserError(
                f"{where}: what is written there does not reach the stream: {error}"
            ) from None

    @torch.inference_mode()
    def _check_stream(self) -> None:
        """What is written at the end of a block must be what the next block takes."""
        for key, name in self.names.items():
            if name != "resid_post":
                continue
            for layer in self.layers:
                if layer + 1 < len(self.tower.blocks):
                    self._check_next(key, layer)

    def _check_next(self, key: str | None, layer: int) -> None:
        ids_BT = test_ids(self.model)
        batch, index = Batch(*ids_BT.shape), _every(ids_BT)
        taken: list[Tensor] = []
        written: list[Tensor] = []

        def edit(x_ND: Tensor) -> Tensor:
            written.append(_halved(x_ND))
            return written[0]

        entered = self.tower.ends[layer + 1].entered
        assert entered is not None, "checked when the tower was found"
        place = entered.place
        tap = Tap(self.tower.blocks[layer + 1], place.index, place.layout, place.is_input)
        after = Change(layer + 1, index, read_into(taken), key)
        with self.changed([Change(layer, index, edit, key)], batch):
            handle = _attach(tap, _Writer(after, (tap,), batch, self).write)
            try:
                run_tower(self.tower.forward, ids_BT)
            finally:
                handle.remove()
        apart = float((taken[0] - written[0]).abs().max())
        limit = CLOSE * torch.finfo(written[0].dtype).eps * float(written[0].abs().max())
        if not apart <= limit:
            raise UserError(
                f"{self._place(key, layer)}: what is written there is not what the next block takes "
                f"(they differ by {apart:.3g}); no SAE can be spliced in at this hookpoint"
            )


@dataclass
class _Writer:
    """Writes one change: at a tap alone, or of several at the last one that runs."""

    change: Change
    taps: tuple[Tap, ...]
    batch: Batch
    splicer: Splicer
    _sum: list[Tensor] = field(default_factory=list)

    def write(self, tap: Tap, given: Tensor) -> Tensor | None:
        """The tensor with the changed rows; None where nothing changes yet."""
        row, column = (part.to(given.device) for part in self.change.index)
        view_BTD = self.splicer.rows(given, tap, self.batch, self.change)
        rows_ND = view_BTD[row, column]
        if len(self.taps) == 1 and tap.factor == 1.0:
            changed_ND = self.change.edit(rows_ND)
        else:
            self._sum.append(rows_ND * tap.factor)
            if len(self._sum) < len(self.taps):
                return None
            whole_ND = torch.stack(self._sum).sum(dim=0)
            self._sum.clear()  # the next forward pass begins anew
            changed_ND = rows_ND + (self.change.edit(whole_ND) - whole_ND) / tap.factor
        fresh = given.clone(memory_format=torch.contiguous_format)
        view_BTD = self.splicer.rows(fresh, tap, self.batch, self.change)
        view_BTD[row, column] = changed_ND
        return fresh


def _attach(tap: Tap, write: Callable[[Tap, Tensor], Tensor | None]) -> Any:
    """A hook at the tap, whose tensor ``write`` replaces."""
    if tap.is_input:

        def on_input(_module: nn.Module, args: tuple, kwargs: dict) -> Any:
            fresh = write(tap, tensors_taken(args, kwargs)[tap.index])
            return None if fresh is None else _taken_with(args, kwargs, tap.index, fresh)

        return tap.module.register_forward_pre_hook(on_input, with_kwargs=True)

    def on_output(_module: nn.Module, _args: tuple, output: Any) -> Any:
        fresh = write(tap, list(tensors_of(output))[tap.index])
        return None if fresh is None else with_tensor(output, tap.index, fresh)

    return tap.module.register_forward_hook(on_output)


def with_tensor(given: Any, index: int, tensor: Tensor) -> Any:
    """What a module takes or gives, with another tensor as the ``index``-th that ``tensors_of`` finds."""
    return _rebuilt(given, index, tensor, count())


def _rebuilt(given: Any, index: int, tensor: Tensor, numbers: Iterator[int]) -> Any:
    if isinstance(given, Tensor):
        return tensor if next(numbers) == index else given
    if isinstance(given, (tuple, list)):
        items = [_rebuilt(item, index, tensor, numbers) for item in given]
        return type(given)(*items) if hasattr(given, "_fields") else type(given)(items)
    if not isinstance(given, dict):
        return given
    fresh = copy(given)
    for key, value in given.items():
        other = _rebuilt(value, index, tensor, numbers)
        if other is not value:
            fresh[key] = other
    return fresh


def _taken_with(args: tuple, kwargs: dict[str, Any], index: int, tensor: Tensor) -> Any:
    """Arguments with another tensor as the ``index``-th of ``tensors_taken``."""
    first = {name: kwargs[name] for name in STREAM_NAMES if name in kwargs}
    rest = {name: value for name, value in kwargs.items() if name not in first}
    args, first, rest = with_tensor((args, first, rest), index, tensor)
    return args, {**first, **rest}


def _every(ids_BT: Tensor) -> Index:
    rows, columns = torch.ones_like(ids_BT).nonzero(as_tuple=True)
    return rows, columns


def _halved(x_ND: Tensor) -> Tensor:
    return x_ND * 0.5
