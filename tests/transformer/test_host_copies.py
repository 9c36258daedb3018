"""Rows on their way from a GPU: in order, complete, waited for before they are read; simulated here."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from raysae.errors import UserError
from raysae.sites import Site
from raysae.transformer import capture
from raysae.transformer.capture import Capturer
from raysae.transformer.host_copies import HostCopies, Lane, SideCopies, host_copies
from raysae.transformer.loading import ModelSpec, load_model
from tests.transformer.test_unmasked import sequences

ONE, OTHER = Site(0, "all"), Site(1, -1)
GARBAGE = 171


class SlowLane:
    """A lane whose copies are there only when their event has been waited for."""

    def __init__(self):
        self.blocks, self.underway, self.log = [], [], []

    def pinned(self, size):
        self.blocks.append(torch.zeros(size, dtype=torch.uint8))
        return self.blocks[-1]

    @contextmanager
    def copying(self):
        before = [block.clone() for block in self.blocks]
        yield
        pairs = zip(self.blocks, before, strict=True)
        (self.target,) = [block for block, old in pairs if not torch.equal(block, old)]
        assert not any(self.target is block for block in self.underway), "not read yet"

    def recorded(self):
        block, arriving = self.target, self.target.clone()
        block.fill_(GARBAGE)
        self.underway.append(block)
        self.log.append("begun")

        def synchronize():
            assert self.underway.pop(0) is block, "in order"
            block.copy_(arriving)
            self.log.append("waited")

        return SimpleNamespace(synchronize=synchronize)


def batches(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    for rows in (7, 3, 1, 12, 5):
        yield {
            ONE: (torch.randn(rows, 6, generator=generator) * scale).to(dtype),
            OTHER: (torch.randn(rows // 2, 6, generator=generator) * scale).to(dtype),
        }


def taken(copies, every):
    """All that arrives, and how many batches had come when each one was taken."""
    found, counts = [], []
    for rows in every:
        found += copies.take(rows)
        counts.append(len(found))
    return found + copies.rest(), counts


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_each_batch_arrives_whole_and_in_order_one_batch_late(stored, computed):
    every = list(batches(computed))
    expected, at_once = taken(HostCopies(stored), every)
    assert at_once == [1, 2, 3, 4, 5]
    lane = SlowLane()
    found, counts = taken(SideCopies(stored, lane), every)
    assert counts == [0, 1, 2, 3, 4], "the host waits for the batch before the last one"
    assert lane.log[:4] == ["begun", "begun", "waited", "begun"]
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for site, rows in other.items():
            assert torch.equal(one[site], rows) and one[site].dtype == rows.dtype


def test_two_blocks_take_turns_and_grow_where_a_batch_is_larger():
    lane = SlowLane()
    taken(SideCopies("float32", lane), list(batches()))
    sizes = [len(block) for block in lane.blocks]
    assert sizes == [
        4 * 6 * 10 + 2,
        4 * 6 * 4 + 2,
        4 * 6 * 18 + 2,
    ]  # the first serves the third batch


@pytest.mark.parametrize("scale", [1e6, 1e-9])
def test_what_a_store_cannot_hold_is_refused_as_at_once_and_with_the_same_words(scale):
    every = list(batches())
    every[3] = {site: rows * scale for site, rows in every[3].items()}
    with pytest.raises(UserError) as expected:
        taken(HostCopies("float16"), every)
    with pytest.raises(UserError) as found:
        taken(SideCopies("float16", SlowLane()), every)
    assert str(found.value) == str(expected.value)


def test_rows_that_are_looked_at_and_kept_are_the_same():
    every = list(batches())
    every[1][ONE][0] = 1e-9
    every[2][ONE][0, 1] = torch.inf  # the writer decides on it
    expected, _ = taken(HostCopies("float16"), every)
    found, _ = taken(SideCopies("float16", SlowLane()), every)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[site], other[site]) for site in other)


def test_a_capture_by_side_copies_gives_the_same_rows_and_reports_what_has_arrived(
    tiny_models, monkeypatch
):
    model = load_model(ModelSpec(str(tiny_models["gpt2"]), None, "float32", False))
    capturer = Capturer(model, hookpoint="resid_post", layers=range(3), dtype="float16")
    monkeypatch.setitem(capture.FORWARD_TOKENS, "cpu", 14)
    expected, reports, lane = capturer.rows(list(sequences()), ["all", -1]), [], SlowLane()
    monkeypatch.setattr(capture, "host_copies", lambda dtype, device: SideCopies(dtype, lane))

    def report(tokens):
        reports.append((tokens, lane.log.count("begun")))

    found = capturer.rows(list(sequences()), ["all", -1], report=report)
    assert list(found) == list(expected)
    for site, rows in expected.items():
        assert torch.equal(found[site].activation_ND, rows.activation_ND)
        assert (found[site].token_id == rows.token_id).all()
    assert reports == [(12, 2), (9, 3), (12, 3)], "while the next batch was at work"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_rows_come_from_a_gpu_as_they_are():
    device = torch.device("cuda")
    copies = host_copies("float16", device)
    assert isinstance(copies, SideCopies) and isinstance(copies.lane, Lane)
    every = list(batches())
    expected, _ = taken(HostCopies("float16"), every)
    there = [{site: rows.to(device) for site, rows in one.items()} for one in every]
    found, _ = taken(copies, there)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[site], other[site]) for site in other)
