"""What a block adds to the stream is found by arithmetic, or nothing is found."""

import pytest
import torch
from torch import nn

from raysae.transformer.layouts import Batch, batch_first, layouts_of, tensors_of
from raysae.transformer.recording import BlockRecorder
from raysae.transformer.sublayers import find_sublayers, rest_of_sum, sum_error

D, BATCH = 16, Batch(3, 7)


class Block(nn.Module):
    """A block whose ``add`` says how attention and MLP come into the stream."""

    def __init__(self, add, give=lambda tensor: tensor):
        super().__init__()
        torch.manual_seed(0)
        self.self_attn, self.mlp = Given(give), Given(give)
        self.norm, self.after = nn.LayerNorm(D), nn.LayerNorm(D)
        for norm in (self.norm, self.after):
            nn.init.normal_(norm.weight)
        self.add = add

    def forward(self, hidden_states):
        return self.add(self, hidden_states)


class Given(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.weight, self.give = nn.Parameter(torch.randn(D, D)), give

    def forward(self, hidden_states):
        return self.give(hidden_states @ self.weight)


def sequential(block, x):
    x = x + block.self_attn(block.norm(x))
    return x + block.mlp(block.after(x))


def in_place(block, x):
    mlp, attention = block.mlp(x), block.self_attn(x)
    mlp += attention
    mlp += x
    return mlp


def multiplied(block, x):
    x = x + 0.22 * block.self_attn(block.norm(x))
    return x + 0.22 * block.mlp(block.after(x))


def normalised_again(block, x):
    return x + block.norm(block.self_attn(x)) + block.after(block.mlp(x))


def normalises_the_stream(block, x):
    x = block.norm(x + block.self_attn(x))
    return block.after(x + block.mlp(x))


def scales_the_stream(block, x):
    return 0.9 * (x + block.self_attn(block.norm(x))) + block.mlp(x)


def gates_by_token(block, x):
    return x + x[..., :1].sigmoid() * block.self_attn(x) + block.mlp(x)


def adds_once_more(block, x):
    x = sequential(block, x)
    return x + x[..., :1] * block.norm(x)


def recorded(block, dtype=torch.float32):
    found = []
    x = torch.randn(BATCH.sequences, BATCH.tokens, D).to(dtype)
    x[-1] = x[0]
    block = block.to(dtype)
    use = lambda record: found.append((record, find_sublayers(record, [0.22]), sum_error(record)))  # noqa: E731
    with torch.no_grad(), BlockRecorder(block, BATCH, D, inside=True, done=use):
        block(x)
    return found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("add", "factor", "modules"),
    [
        (sequential, 1.0, ("self_attn", "mlp")),
        (in_place, 1.0, ("self_attn", "mlp")),
        (multiplied, 0.22, ("self_attn", "mlp")),
        (normalised_again, 1.0, ("norm", "after")),
        (normalises_the_stream, 1.0, ("self_attn", "mlp")),
    ],
)
def test_what_is_added_is_found(add, factor, modules, dtype):
    _, found, _ = recorded(Block(add), dtype)
    for kind, module in zip(("attention", "mlp"), modules, strict=True):
        (term,) = found.of(kind).terms
        assert (term.place.module, term.factor) == (module, factor)
    assert found.normalised == (add is normalises_the_stream)


def test_two_modules_may_make_up_one_sublayer():
    def add(block, x):
        x = x + block.self_attn(x)
        return x + 0.22 * (block.mlp(x) + block.shared_experts(x))

    block = Block(add)
    block.shared_experts = Given(lambda tensor: tensor)
    _, found, _ = recorded(block)
    terms = {(term.place.module, term.factor) for term in found.of("mlp").terms}
    assert terms == {("mlp", 0.22), ("shared_experts", 0.22)}


@pytest.mark.parametrize("add", [scales_the_stream, gates_by_token, adds_once_more])
def test_a_block_that_does_something_else_gives_nothing_and_a_figure(add):
    _, found, error = recorded(Block(add))
    assert found is None and error > 0.01


@pytest.mark.parametrize(
    ("give", "layout"),
    [
        (lambda t: (t, None), "batch first"),
        (lambda t: [t.reshape(-1, D)], "flat"),
        (lambda t: {"out": t.transpose(0, 1)}, "time first"),
        (lambda t: t.transpose(0, 1).reshape(-1, D), "flat, time first"),
    ],
)
def test_whatever_a_sublayer_gives_is_recognised_by_its_shape(give, layout):
    def add(block, x):
        for module in (block.self_attn, block.mlp):
            (tensor,) = tensors_of(module(x))
            if layout == "flat, time first":
                tensor = tensor.reshape(BATCH.tokens, BATCH.sequences, D).transpose(0, 1)
            x = x + batch_first(
                tensor, layout if layout != "flat, time first" else "batch first", BATCH
            )
        return x

    _, found, _ = recorded(Block(add, give))
    assert found.of("mlp").terms[0].place.layout == layout


def test_other_shapes_have_no_layout():
    for shape in ((7, D), (3, 7, D + 1), (4, 3, 7, D), (3, 8, D)):
        assert layouts_of(torch.zeros(shape), BATCH, D) == ()


def test_a_sum_that_held_once_is_checked_again():
    _, found, _ = recorded(Block(sequential))
    assert found is not None
    other = []
    block = Block(scales_the_stream)
    use = lambda record: other.append(rest_of_sum(record, found))  # noqa: E731
    x = torch.randn(3, 7, D)
    with torch.no_grad(), BlockRecorder(block, BATCH, D, inside=True, done=use):
        block(x)
    assert other[0] > 0.01
