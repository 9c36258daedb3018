"""Checks that a text's rows do not depend on the batch it runs in: on padding, or on the other texts.

Shapes: B sequences, T tokens, N rows, D d_in.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from raysae.errors import UserError

SHORT = 7
"""Tokens of the text that is padded in the test."""
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""How far a row may be from itself in another batch, as a share of its norm: rounding is less."""
HALF_QUANTILE = 0.9
"""In 16 bits a router may choose another expert by rounding: so many rows must be alike."""

AllRows = Callable[[list[Tensor]], list[Tensor]]
"""Runs texts in one batch; returns the rows ``[N, D]`` of each text."""


def settle_padding(run: AllRows, ids_BT: Tensor, dtype: torch.dtype) -> bool:
    """Whether texts of several lengths may run in one batch, with padding. If not, equal lengths may.

    Raises UserError when even those change each other's rows, or a text's rows differ between two runs.
    """
    long, other, short = ids_BT[0], ids_BT[1], ids_BT[1][:SHORT]
    (long_ND,), (short_ND,) = run([long]), run([short])
    twice = _apart(long_ND, run([long])[0], dtype)
    if twice > TOLERANCE[dtype]:
        raise UserError(
            f"the model gives other rows when it runs over the same text again (they differ by "
            f"{twice:.1%}); raysae needs a model without randomness"
        )
    if _padding_holds(run, (short, long), (short_ND, long_ND), dtype):
        return True
    rows = run([long, other])
    apart = max(_apart(long_ND, rows[0], dtype), _apart(run([other])[0], rows[1], dtype))
    if apart > TOLERANCE[dtype]:
        raise UserError(
            "a text's rows change with the other texts of its batch, even without padding (by up to "
            f"{apart:.1%}): the model mixes texts, so its activations mean nothing for one text. "
            "Turn that off in the model's configuration (expert capacity, for instance)"
        )
    return False


def needs_no_mask(
    masked: AllRows, unmasked: AllRows, ids_BT: Tensor, layers: int, dtype: torch.dtype
) -> bool:
    """Whether a causal model gives texts the same rows when the padding after them is not masked.

    ``masked`` and ``unmasked`` give the rows of ``layers`` layers, one layer after another. No row may
    change with later tokens, not in a single bit: texts of one length run through the same sums.
    """
    text, other = ids_BT[0], ids_BT[1]
    changed = torch.cat([text[:SHORT], other[SHORT:]])
    try:
        (with_ND,), (one_ND,), (other_ND,) = masked([text]), unmasked([text]), unmasked([changed])
        before, after = (
            rows_ND.view(layers, len(text), -1)[:, :SHORT] for rows_ND in (one_ND, other_ND)
        )
        same = torch.equal(before, after) and _apart(with_ND, one_ND, dtype) <= TOLERANCE[dtype]
        return same and settle_padding(unmasked, ids_BT, dtype)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # a model that cannot run without a mask; with one its own error is seen
        return False


def check_same_rows(alone_ND: Tensor, batch_ND: Tensor, texts: int, dtype: torch.dtype) -> None:
    """Raise UserError when a text's rows in the first batch are not those that it has alone.

    ``dtype`` is the number format in which the model computes.
    """
    apart = _apart(alone_ND, batch_ND, dtype)
    if apart > TOLERANCE[dtype]:
        raise UserError(
            f"a text's rows alone and in a batch of {texts} texts differ by up to {apart:.1%}: the model "
            "lets texts or padding change each other (experts of limited capacity, or a mask that it "
            "does not use); turn that off in its configuration"
        )


def _padding_holds(
    run: AllRows, ids: tuple[Tensor, Tensor], alone: tuple[Tensor, Tensor], dtype: torch.dtype
) -> bool:
    try:
        rows = run(list(ids))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # a model that cannot run over padding at all
        return False
    return all(
        _apart(one, row, dtype) <= TOLERANCE[dtype] for one, row in zip(alone, rows, strict=True)
    )


def _apart(one_ND: Tensor, other_ND: Tensor, dtype: torch.dtype) -> float:
    """The largest difference of two versions of a row, as a share of its norm; rows that are small beside
    the others count as larger. In 16 bits, the largest but for a tenth of the rows."""
    if not one_ND.numel():
        return 0.0
    one, other = (rows.double().nan_to_num() for rows in (one_ND, other_ND))
    norm_N = one.norm(dim=1)
    floor = max(float(norm_N.square().mean().sqrt()) * 1e-3, 1e-30)
    apart_N = (one - other).norm(dim=1) / norm_N.clamp(min=floor)
    half = dtype in (torch.float16, torch.bfloat16)
    return float(apart_N.quantile(HALF_QUANTILE) if half else apart_N.max())
