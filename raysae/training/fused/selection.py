"""TopK's selection: the k largest positive pre-activations of each row, as entries.

Shapes: N SAEs, B batch, F d_sae, E entries of an SAE.
"""

import torch
from torch import Tensor

from raysae.training.fused.entries import Entries, chosen_in_rows, entries_of
from raysae.training.fused.launching import Launch, launch, power_of_two, warps_for

WIDEST_PART = 2048
"""Columns of a row that a program has in its registers at a time."""
LEAST_ROOM = 64
"""A program notes at least so many values before it searches them."""


def select_rows(
    pre_NBF: Tensor, bias_NF: Tensor, k_N: Tensor, most: int, real: Tensor, fast: bool
) -> Entries:
    """The k largest positive values of each row of ``pre_NBF + bias_NF``, as entries.

    ``k_N [saes]`` are integers, ``most`` the largest of them. Rows from ``real`` on, a scalar, have no
    entries. ``fast``: by the kernel.
    """
    count, rows, columns = pre_NBF.shape
    most = min(most, columns)
    if not fast:
        summed_NBF = pre_NBF.float() + bias_NF[:, None]
        chosen_NBF = chosen_in_rows(summed_NBF, k_N, most)
        there_B = torch.arange(rows, device=pre_NBF.device) < real
        return entries_of(summed_NBF, chosen_NBF & there_B[:, None], most, whole_batch=False)
    part, room = min(power_of_two(columns), WIDEST_PART), max(power_of_two(2 * most), LEAST_ROOM)
    int_of = lambda *shape: torch.empty(shape, dtype=torch.int32, device=pre_NBF.device)  # noqa: E731
    entries = Entries(
        torch.empty(count, rows * most, device=pre_NBF.device), int_of(count, rows * most),
        int_of(count, rows * most), _first(count, rows, most, pre_NBF.device), int_of(count, rows),
    )  # fmt: skip
    launch(Launch(
        "select_rows", (count * rows,),
        {"pre": pre_NBF, "bias": bias_NF, "k_N": k_N, "real": real},
        {
            "value": entries.value_NE, "column": entries.column_NE, "row_out": entries.row_NE,
            "count": entries.count_NB, "found_key": int_of(count * rows, room),
            "found_place": int_of(count * rows, room),
        },
        {"rows": rows, "columns": columns, "slots": most},
        {"PART": part, "ROOM": room, "SLOTS": power_of_two(most)}, warps_for(part),
    ))  # fmt: skip
    return entries


def _first(count: int, rows: int, slots: int, device: torch.device) -> Tensor:
    first_B = torch.arange(0, rows * slots, slots, dtype=torch.int32, device=device)
    return first_B.expand(count, -1).contiguous()
