"""Tests of the readers and writers: what goes in comes out."""

from collections.abc import Sequence

from torch import Tensor

from hopmem import patterns
from hopmem.patterns import Form, Layout, Target


def save(
    path: str,
    kind: str,
    array: Tensor,
    form: Form,
    names: Sequence[str],
    layout: Layout | None,
    *,
    scale: float,
    force: bool,
) -> None:
    """Write an array as it is."""
    patterns.save(Target(path, kind, tuple(array.shape), array.dtype, form, names, layout, scale, force), array)
