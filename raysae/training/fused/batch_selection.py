"""BatchTopK's selection: the largest positive pre-activations of a whole batch, as entries.

Shapes: N SAEs, B batch, F d_sae, P programs of an SAE, V values of a digit, E entries of an SAE.
"""

import torch
from torch import Tensor

from raysae.training.fused.entries import Entries, chosen_in_batch, entries_of
from raysae.training.fused.launching import Launch, launch, power_of_two, warps_for
from raysae.training.fused.selection import WIDEST_PART

LEVELS = ((31, 20), (20, 10), (10, 0))
"""The bits of a key between which each digit lies, from its first to its last: exact for float32."""
PROGRAMS = 512
"""Programs that count the digits of all SAEs: each has a histogram of its own."""


def select_batch(
    pre_NBF: Tensor, bias_NF: Tensor, k_N: Tensor, most: int, real: Tensor, fast: bool
) -> Entries:
    """The k times ``real`` largest positive values of each SAE's ``pre_NBF + bias_NF``, as entries.

    ``k_N [saes]`` are integers, ``most`` the largest of them. Rows from ``real`` on, a scalar, have no
    entries. ``fast``: by the kernels.
    """
    count, rows, columns = pre_NBF.shape
    most = min(most, columns)
    wanted_N = k_N.clamp_max(columns) * real
    if not fast:
        summed_NBF = pre_NBF.float() + bias_NF[:, None]
        padding_B = torch.arange(rows, device=pre_NBF.device) >= real
        summed_NBF = summed_NBF.masked_fill(padding_B[:, None], 0.0)
        chosen_NBF = chosen_in_batch(summed_NBF, wanted_N, most * rows)
        return entries_of(summed_NBF, chosen_NBF, most, whole_batch=True)
    numbers = {"rows": rows, "columns": columns}
    sums = {"pre": pre_NBF, "bias": bias_NF}
    threshold_N, room_N = _threshold(sums, numbers, wanted_N, real)
    int_of = lambda *shape: torch.empty(shape, dtype=torch.int32, device=pre_NBF.device)  # noqa: E731
    more_NB, equal_NB, part = int_of(count, rows), int_of(count, rows), _part(columns)
    launch(Launch(
        "count_chosen", (count * rows,), {**sums, "real": real, "threshold_N": threshold_N},
        {"more": more_NB, "equal": equal_NB}, numbers, {"PART": part}, warps_for(part),
    ))  # fmt: skip
    before_NB = equal_NB.cumsum(dim=1) - equal_NB
    room_NB = (room_N[:, None] - before_NB).clamp_min(0).minimum(equal_NB)
    count_NB = more_NB + room_NB
    first_NB = count_NB.cumsum(dim=1) - count_NB
    value_NE = torch.zeros(count, most * rows, device=pre_NBF.device)
    column_NE = torch.full_like(value_NE, columns, dtype=torch.int32)
    entries = Entries(
        value_NE, column_NE, torch.zeros_like(column_NE), first_NB.int(), count_NB.int()
    )
    launch(Launch(
        "write_chosen", (count * rows,),
        {
            **sums, "threshold_N": threshold_N, "first_NB": entries.first_NB,
            "count_NB": entries.count_NB, "room_NB": room_NB.int(),
        },
        {"value": value_NE, "column": column_NE, "row_out": entries.row_NE},
        {**numbers, "slots": most * rows}, {"PART": part}, warps_for(part),
    ))  # fmt: skip
    return entries


def _threshold(
    sums: dict[str, Tensor], numbers: dict[str, int], wanted_N: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """The smallest key that is selected of each SAE, and how many of those equal to it are."""
    count, part = len(wanted_N), _part(numbers["columns"])
    programs = max(min(PROGRAMS // count, numbers["rows"]), 1)
    prefix_N = torch.zeros(count, dtype=torch.int32, device=real.device)
    room_N = wanted_N
    for above, below in LEVELS:
        values = 2 ** (above - below)
        counts = torch.empty(count, programs, values, dtype=torch.int32, device=real.device)
        launch(Launch(
            "count_digits", (count * programs,), {**sums, "real": real, "prefix_N": prefix_N},
            {"counts": counts}, {**numbers, "programs": programs, "above": above, "below": below},
            {"PART": part, "DIGITS": values}, warps_for(part),
        ))  # fmt: skip
        digit_N, room_N = _digit(counts.sum(dim=1), room_N)
        prefix_N = ((prefix_N << (above - below)) + digit_N).int()
    few_N = prefix_N == 0  # all positive values are selected
    return torch.where(few_N, 0, prefix_N).int(), torch.where(few_N, 0, room_N)


def _digit(counts_NV: Tensor, room_N: Tensor) -> tuple[Tensor, Tensor]:
    """The largest digit that ``room_N`` keys or more reach, else 0; the room below the larger ones."""
    reach_NV = counts_NV.flip(1).cumsum(dim=1).flip(1)  # keys of this digit or a larger one
    enough_NV = reach_NV >= room_N[:, None]
    digit_N = enough_NV.sum(dim=1).sub(1).clamp_min(0)
    larger_N = (reach_NV - counts_NV).gather(1, digit_N[:, None]).squeeze(1)
    return digit_N, room_N - larger_N


def _part(columns: int) -> int:
    return min(power_of_two(columns), WIDEST_PART)
