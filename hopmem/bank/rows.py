"""Whatever a caller has → rows of numbers."""

from typing import Any

import torch
from torch import Tensor

from hopmem.errors import InvalidDataError
from hopmem.model.rows import LARGEST


def as_rows(X: Any, where: str, *, partial: bool = False) -> Tensor:
    """Anything that is an array of numbers as a tensor with a row for each pattern.

    Args:
        X: array or tensor [N, ...].
        where: what it is, for the message.
        partial: whether NaN is allowed: an unknown entry.

    Returns:
        A tensor on the CPU [N, ...], not copied where that can be.

    Raises:
        InvalidDataError: no numbers, no rows, NaN or infinities.
    """
    try:
        rows = torch.as_tensor(X).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidDataError(where, "an array of numbers [N, ...]", error) from error
    if rows.ndim == 0 or rows.numel() == 0 or rows.is_complex():
        raise InvalidDataError(where, "real numbers [N, ...], N ≥ 1", f"{rows.dtype} of shape {list(rows.shape)}")
    finite = rows.isfinite()
    if rows.dtype in {torch.float64, torch.float32, torch.bfloat16}:
        finite &= rows.abs() <= LARGEST
    if bool(finite.all()):
        return rows
    usable = finite | rows.isnan() if partial else finite
    if not bool(usable.all()):
        bad = int((~usable.reshape(len(rows), -1)).any(1).nonzero()[0, 0])
        found = "an infinity, or more" if partial else "NaN, an infinity, or more"
        raise InvalidDataError(f"{where}, row {bad}", f"finite numbers up to {LARGEST:g}", found)
    return rows
