"""The shapes in which a module gives one vector per token, and the tensors inside what it gives.

Shapes: B sequences, T tokens, D d_in, N = B * T rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from raysae.errors import UserError

Layout = Literal["batch first", "time first", "flat", "flat, time first"]


STREAM_NAMES = ("hidden_states", "hidden_state")
"""Names of the argument by which a block takes the residual stream."""


@dataclass(frozen=True)
class Batch:
    """The size of a batch: sequences and tokens, padding included."""

    sequences: int
    tokens: int


def tensors_of(given: Any) -> Iterator[Tensor]:
    """Every tensor of what a module takes or gives: a tensor, tuple, list, dict or ModelOutput."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, Mapping):
        for value in given.values():
            yield from tensors_of(value)
    elif isinstance(given, (tuple, list)):
        for value in given:
            yield from tensors_of(value)


def tensors_taken(args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """Every tensor that a module takes; those of an argument called ``hidden_states`` come first."""
    first = {name: kwargs[name] for name in STREAM_NAMES if name in kwargs}
    return list(tensors_of((args, first, {k: v for k, v in kwargs.items() if k not in first})))


def layouts_of(tensor: Tensor, batch: Batch, d_in: int) -> tuple[Layout, ...]:
    """The layouts that the tensor's shape allows; none when it has no vector per token.

    A flat tensor allows two. The other two differ in shape unless ``B == T``.
    """
    shape, (b, t) = tuple(tensor.shape), (batch.sequences, batch.tokens)
    if not tensor.is_floating_point() or shape[-1:] != (d_in,):
        return ()
    if shape == (b, t, d_in):
        return ("batch first",)
    if shape == (t, b, d_in):
        return ("time first",)
    flat = shape in ((b * t, d_in), (1, b * t, d_in))
    return ("flat", "flat, time first") if flat else ()


def check_layout(given: Tensor, layout: Layout, batch: Batch, d_in: int, name: str) -> None:
    """Raise UserError, which names the place, when a tensor no longer has the layout of the test pass."""
    if layout not in layouts_of(given, batch, d_in):
        raise UserError(
            f"{name}: over {batch.sequences} texts of {batch.tokens} tokens it has shape "
            f"{tuple(given.shape)}; in the test pass it was {layout}, so raysae cannot tell which row is "
            "which token"
        )


def batch_first(tensor: Tensor, layout: Layout, batch: Batch) -> Tensor:
    """A view of the tensor as ``[B, T, D]``.

    ``tensor`` must have a shape that ``layouts_of`` allows for ``layout``.
    """
    b, t, d = batch.sequences, batch.tokens, tensor.shape[-1]
    if layout in ("batch first", "flat"):
        return tensor.reshape(b, t, d)
    return tensor.reshape(t, b, d).transpose(0, 1)
