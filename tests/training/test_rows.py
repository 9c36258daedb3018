"""Rows that can be read anywhere, and rows that are taken once: two types with a common base."""

import pytest
import torch

from raysae.training.iterator_rows import IteratorRows
from raysae.training.rows import IndexedRows, Rows, RowSource

NUMBERED = torch.arange(1000.0)[:, None].expand(-1, 4)


def iterated(rows=1000):
    return IteratorRows(iter(NUMBERED.split(77)), rows)


def test_both_do_what_a_training_needs():
    for rows in (Rows(NUMBERED), iterated()):
        assert isinstance(rows, RowSource) and rows.d_in == 4 and len(rows) == 1000
        assert torch.equal(torch.cat(list(rows.head())), NUMBERED)
        assert len(set(rows.sample(50, seed=1)[:, 0].tolist())) == 50
        taken = torch.cat(list(rows.epoch(3, 0, 64, shuffle_rows=200)))
        assert sorted(taken[:, 0].tolist()) == list(range(1000)) != taken[:, 0].tolist()


def test_only_indexed_rows_can_be_read_anywhere_and_again():
    indexed, once = Rows(NUMBERED), iterated()
    assert isinstance(indexed, IndexedRows) and not isinstance(once, IndexedRows)
    assert not any(hasattr(once, name) for name in ("read", "taken", "batches", "gather"))
    assert torch.equal(indexed.read(10, 20), NUMBERED[10:20])
    first = list(indexed.epoch(3, 0, 64))
    assert torch.equal(torch.cat(first), torch.cat(list(indexed.epoch(3, 0, 64))))


def test_an_iterator_is_taken_once():
    rows = iterated()
    list(rows.epoch(3, 0, 64))
    with pytest.raises(ValueError, match="can be trained on once; make a new one"):
        rows.epoch(3, 0, 64)


def test_the_length_of_an_iterator_is_a_budget():
    rows = iterated(300)
    assert len(rows) == 300
    assert sum(len(batch) for batch in rows.epoch(3, 0, 64)) == 300
    longer = iterated(1200)
    with pytest.warns(UserWarning, match="ended 200 rows before the 1,200"):
        assert sum(len(batch) for batch in longer.epoch(3, 0, 64)) == 1000
