"""Tables in a terminal that is too narrow: fewer columns, and no figure that is cut."""

import pytest

from raysae.console.output import Table, table_lines


@pytest.mark.parametrize(
    ("width", "shown"), [(200, ["trial", "K", "EV", "L0", "time"]), (40, ["trial", "K", "EV"])]
)
def test_columns_without_room_are_left_out(width, shown):
    table = Table(box=None, padding=(0, 2, 0, 0), whole_cells=True)
    for header in ("trial", "K", "EV", "L0", "time", ""):
        table.add_column(header, justify="right")
    table.add_row("0", "16", "0.9872", "16.00 or so", "11 min 36 s", "<- chosen")
    head, row = table_lines(table, width)
    assert head.split() == shown
    assert "0.9872" in row and row.endswith("<- chosen") and "…" not in head + row


def test_other_tables_wrap_their_sentences():
    table = Table(box=None)
    table.add_column("what")
    table.add_column("why")
    table.add_row("trial 3", "the loss is not finite and so the training ended")
    lines = table_lines(table, 30)
    assert len(lines) > 2 and "…" not in "".join(lines)
