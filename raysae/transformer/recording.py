"""Recording one block in a test pass: copies of everything its modules take and give.

Shapes: N rows (tokens of all sequences), D d_in.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raysae.transformer.layouts import (
    Batch,
    Layout,
    batch_first,
    layouts_of,
    tensors_of,
    tensors_taken,
)

Kind = Literal["attention", "mlp", "norm", "other"]

KINDS: dict[Kind, str] = {
    "norm": r"norm|(^|_)ln(_|\d|$)",
    "attention": r"att(n|entions?)(_|\d|$)|^mha$|^sa$",
    "mlp": r"mlp|ffn?s?(_|\d|$)|feed_?forward|moe|expert|^fc_?\d?$|^lin\d?$|^intermediate$|^output$",
}
"""What the name of a module in a block says of it; the first that matches counts."""
CLASSES: dict[Kind, str] = {
    "attention": r"Attention\d?$",
    "mlp": r"(MLP|Mlp|FeedForward|FFN|MoE|Moe|MOE|Experts|(Moe|MoE|MLP)(Block|Layer))$",
}
"""What the end of a module's class says where its name says nothing; families have Moe in front."""


def is_norm(name: str, module: nn.Module) -> bool:
    """Whether a module normalises, by the last part of its name or by its class."""
    return (
        bool(re.search(KINDS["norm"], name.lower().split(".")[-1]))
        or "Norm" in type(module).__name__
    )


def kind_of(name: str, module: nn.Module) -> Kind:
    """What a module is, by its name in the block, such as ``self_attn.o_proj``, or by its class.

    The first part of the name that says something counts; a norm is one only by the last part.
    """
    parts = name.lower().split(".")
    for part in parts:
        for kind, pattern in KINDS.items():
            if re.search(pattern, part):
                if kind != "norm" or part is parts[-1]:
                    return kind
                break
    for kind, pattern in CLASSES.items():
        if re.search(pattern, type(module).__name__):
            return kind
    return "norm" if "Norm" in type(module).__name__ else "other"


@dataclass(frozen=True)
class Place:
    """Which tensor of which module: the ``index``-th that the module gives (or takes), and its layout."""

    module: str
    """The module's name within the block; empty for the block itself."""
    index: int
    layout: Layout
    is_input: bool = False

    def __str__(self) -> str:
        return self.module or "the block"


@dataclass(eq=False)
class Record:
    """A copy of a tensor at a place."""

    place: Place
    kind: Kind
    rows_ND: Tensor
    """In float64 on the CPU."""
    eps: float
    """The rounding unit of the tensor's dtype."""


@dataclass
class BlockRecord:
    """What one block took and gave in a test pass."""

    records: list[Record] = field(default_factory=list)
    """Of the modules within the block that ran once, in the order in which they ran."""
    norms: list[tuple[Record, Record]] = field(default_factory=list)
    """The first input and the first output of every normalisation."""
    kinds: set[Kind] = field(default_factory=set)
    """The kinds of all modules within the block that ran."""
    entered: Record | None = None
    left: Record | None = None
    calls: int = 0
    """How often the block ran."""
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    """The shapes of the first tensors that the block took and gave, for messages."""

    def at(self, place: Place) -> Record | None:
        """The record of a place."""
        return next((record for record in self.records if record.place == place), None)


class BlockRecorder:
    """Records a block while the model runs, and with ``inside`` all its modules.

    Use it as a context around the forward pass. ``done`` is called with the record when the block ends;
    what was recorded inside is then dropped, so that one block at a time takes memory.
    """

    def __init__(
        self,
        block: nn.Module,
        batch: Batch,
        d_in: int,
        *,
        inside: bool = False,
        done: Callable[[BlockRecord], None] = lambda record: None,
    ):
        self.block, self.batch, self.d_in = block, batch, d_in
        self.inside, self.done = inside, done
        self.record = BlockRecord()
        self._kinds: dict[int, Kind] = {}
        self._alive: list[Any] = []
        self._handles: list[Any] = []
        self._calls: dict[str, int] = {}
        self._inputs: dict[str, list[Record]] = {}

    def __enter__(self) -> "BlockRecorder":
        enter = self.block.register_forward_pre_hook(self._enter, with_kwargs=True)
        if self.inside:
            for name, module in self.block.named_modules():
                if name:
                    self._watch(name, module)
        self._handles += [enter, self.block.register_forward_hook(self._leave)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._alive.clear()

    def _watch(self, name: str, module: nn.Module) -> None:
        own, normalises = kind_of(name, module), is_norm(name, module)

        def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._calls[name] = self._calls.get(name, 0) + 1
            taken = tensors_taken(args, kwargs)
            kind = self._kinds[id(module)] = self._inherited(own, taken)
            self.record.kinds.add(kind)
            self._inputs[name] = self._records(name, taken, kind, is_input=True)
            self.record.records += self._inputs[name]

        def after(_module: nn.Module, _args: tuple, given: Any) -> None:
            tensors, kind = list(tensors_of(given)), self._kinds[id(module)]
            self._kinds |= {id(tensor): kind for tensor in tensors}
            self._alive += tensors  # so that no other tensor gets such an id
            found = self._records(name, tensors, kind, is_input=False)
            self.record.records += found
            if normalises and found and self._inputs[name]:
                self.record.norms.append((self._inputs[name][0], found[0]))

        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    def _inherited(self, kind: Kind, taken: list[Tensor]) -> Kind:
        """A norm, a dropout and the like have the kind of the module before them."""
        if kind in ("attention", "mlp"):
            return kind
        before = [self._kinds[id(tensor)] for tensor in taken if id(tensor) in self._kinds]
        return before[0] if before else "other"

    def _records(
        self, name: str, tensors: list[Tensor], kind: Kind, *, is_input: bool
    ) -> list[Record]:
        return [
            Record(Place(name, index, layout, is_input), kind, rows_ND, torch.finfo(t.dtype).eps)
            for index, t in enumerate(tensors)
            for layout, rows_ND in readings(t.detach(), self.batch, self.d_in)
        ]

    def _enter(self, _block: nn.Module, args: tuple, kwargs: dict) -> None:
        taken = tensors_taken(args, kwargs)
        self.record.calls += 1
        self.record.shapes += [tuple(tensor.shape) for tensor in taken[:1]]
        found = self._records("", taken, "other", is_input=True)
        self.record.entered = found[0] if found else None

    def _leave(self, _block: nn.Module, _args: tuple, given: Any) -> None:
        tensors, record = list(tensors_of(given)), self.record
        record.shapes += [tuple(tensor.shape) for tensor in tensors[:1]]
        found = self._records("", tensors, "other", is_input=False)
        record.left = found[0] if found else None
        once = {name for name, calls in self._calls.items() if calls == 1}
        record.records = [r for r in record.records if r.place.module in once]
        record.norms = [pair for pair in record.norms if pair[0].place.module in once]
        self.done(record)
        record.records, record.norms = [], []
        self._alive.clear()


def readings(tensor: Tensor, batch: Batch, d_in: int) -> list[tuple[Layout, Tensor]]:
    """A tensor of a test pass in the layout of its shape, as rows ``[N, D]`` in float64 on the CPU.

    Flat tensors allow two layouts. The first and the last sequence of a test pass are the same text, so
    the right layout is the one in which their rows are alike.
    """
    found = []
    for layout in layouts_of(tensor, batch, d_in):
        copy = batch_first(tensor, layout, batch).to("cpu", torch.float64, copy=True)
        found.append((layout, copy))
    if len(found) > 1:
        found.sort(key=lambda pair: float((pair[1][0] - pair[1][-1]).abs().max()))
    return [(layout, rows_BTD.reshape(-1, d_in)) for layout, rows_BTD in found[:1]]
