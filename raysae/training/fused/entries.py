"""The active latents of a batch as a list of entries, and their selection in plain torch.

A key orders pre-activations: the bits of a positive float order as its value does; what is not positive
has key 0 and is never selected; NaN of either sign is above all numbers, so that the loss is NaN. Of
equal values the first are taken.

Shapes: N SAEs, B batch, F d_sae, E entries of an SAE.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BITS = 0x7FFFFFFF
"""All bits but the sign."""


class Entries(NamedTuple):
    """The active latents of each SAE's batch, row by row; latents of a row are in rising order."""

    value_NE: Tensor
    """Their pre-activations, float32; 0 in places that hold none."""
    column_NE: Tensor
    """Their latents, int32; d_sae in places that hold none."""
    row_NE: Tensor
    """Their rows in the batch, int32."""
    first_NB: Tensor
    """The place of each row's first entry, int32."""
    count_NB: Tensor
    """The number of each row's entries, int32."""

    def dense(self, columns: int, dtype: torch.dtype) -> Tensor:
        """Features ``[saes, batch, columns]``: 0 where no entry is."""
        count, rows = self.count_NB.shape
        whole = rows * columns
        place_NE = self.row_NE.long() * columns + self.column_NE
        place_NE = torch.where(self.column_NE < columns, place_NE, whole)
        # one place more for what holds no entry; 16 bytes or more, so that rows stay aligned
        flat = torch.zeros(count, whole + 8, dtype=dtype, device=self.value_NE.device)
        flat.scatter_(1, place_NE, self.value_NE.to(dtype))
        return flat[:, :whole].view(count, rows, columns)


def keys(pre: Tensor) -> Tensor:
    """The keys of pre-activations, int32."""
    pre = pre.float()
    return torch.where(pre <= 0, 0.0, pre).view(torch.int32) & BITS


def chosen(pre_MX: Tensor, wanted_M: Tensor, most: int) -> Tensor:
    """Which of the last dimension's values are selected: the ``wanted_M`` largest positive ones.

    ``most`` is the largest of ``wanted_M``.
    """
    key_MX = keys(pre_MX)
    largest = key_MX.topk(min(most, key_MX.shape[-1]), dim=-1).values
    last = (wanted_M - 1).clamp(0, largest.shape[-1] - 1)[..., None]
    threshold = largest.gather(-1, last).clamp_min(1)
    above, equal = key_MX > threshold, key_MX == threshold
    room = wanted_M[..., None] - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= room))


def chosen_in_rows(pre_NBF: Tensor, k_N: Tensor, most: int) -> Tensor:
    """Which values are among the k largest positive ones of their row."""
    return chosen(pre_NBF, k_N[:, None].expand(-1, pre_NBF.shape[1]), most)


def chosen_in_batch(pre_NBF: Tensor, wanted_N: Tensor, most: int) -> Tensor:
    """Which values are among the ``wanted_N`` largest positive ones of their SAE's batch."""
    return chosen(pre_NBF.flatten(1), wanted_N, most).view(pre_NBF.shape)


def entries_of(pre_NBF: Tensor, chosen_NBF: Tensor, slots: int, whole_batch: bool) -> Entries:
    """The chosen values as entries: ``slots`` places for each row, or as many times the rows for all."""
    count, rows, columns = pre_NBF.shape
    size = rows * columns
    place = torch.arange(size, device=pre_NBF.device).expand(count, -1)
    place = torch.where(chosen_NBF.flatten(1), place, size)
    count_NB = chosen_NBF.sum(dim=2).int()
    if whole_batch:
        place_NE = _padded(place, size).sort(dim=1).values[:, : slots * rows]
        first_NB = count_NB.cumsum(dim=1) - count_NB
    else:
        in_rows = _padded(place.view(count, rows, columns), size, slots).sort(dim=2).values
        place_NE = in_rows[:, :, :slots].flatten(1)
        first_NB = torch.arange(rows, device=pre_NBF.device).mul(slots).expand(count, -1)
    there_NE = place_NE < size
    value_NE = pre_NBF.float().flatten(1).gather(1, place_NE.clamp_max(size - 1))
    row = torch.arange(place_NE.shape[1], device=pre_NBF.device) // slots
    return Entries(
        value_NE.where(there_NE, 0.0),
        torch.where(there_NE, place_NE % columns, columns).int(),
        torch.where(there_NE, place_NE // columns, row.clamp_max(rows - 1)).int(),
        first_NB.int().contiguous(),
        count_NB,
    )


def _padded(place: Tensor, value: int, slots: int = 0) -> Tensor:
    """With as many places more as there are slots beyond the last dimension."""
    return torch.nn.functional.pad(place, (0, max(slots - place.shape[-1], 0)), value=value)
