"""Numbers that no training can follow: rows that are not finite, losses that are not finite."""

from collections.abc import Iterable

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max
"""The largest number of a row; training reads rows as float32."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite; the update did not happen."""


class NonFiniteRowsError(NonFiniteLossError, ValueError):
    """A row holds a number that is NaN, infinite or too large for float32; no update used it."""


def finite(batches: Iterable[Tensor], argument: str, start: int = 0) -> Iterable[Tensor]:
    """The same batches ``[batch, d_in]``, each checked before it is given.

    ``start`` is the number of the first row. Raises NonFiniteRowsError, naming the ``argument`` and
    the row, when a number is NaN, infinite or too large for float32.
    """
    for batch_BD in batches:
        refuse_non_finite(batch_BD, argument, start)
        yield batch_BD
        start += len(batch_BD)


def refuse_non_finite(rows_BD: Tensor, argument: str, start: int = 0) -> None:
    """Check one batch; see ``finite``."""
    if not rows_BD.numel():
        return
    least, most = (float(value) for value in rows_BD.aminmax())
    if max(-least, most) <= LARGEST and least == least:  # NaN is in both
        return
    bad_B = ~(rows_BD.double().abs() <= LARGEST).all(dim=1)
    row = int(bad_B.nonzero()[0])
    value = next(v for v in rows_BD[row].tolist() if not abs(v) <= LARGEST)
    raise NonFiniteRowsError(
        f"{argument}: row {start + row} holds {value:g}, and {int(bad_B.sum())} of these "
        f"{len(bad_B)} rows hold NaN, infinite or too large values; leave such rows out, or find "
        "where they come from"
    )
