"""Bags of instances: what multiple-instance learning learns from."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.sparse import issparse
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from experiments.setting import BadDataError, MissingDataError


@dataclass(frozen=True)
class Bags:
    """Sets of instances, padded to the largest."""

    X: Tensor  # [N, S, d] float32
    padding: Tensor  # [N, S] bool, True where there is no instance
    y: Tensor  # [N] float32, 1 where the bag holds what is looked for

    def __getitem__(self, rows: Tensor) -> "Bags":
        """Some bags."""
        return Bags(self.X[rows], self.padding[rows], self.y[rows])

    def __len__(self) -> int:
        """N."""
        return len(self.y)

    def standardised(self, like: "Bags") -> "Bags":
        """Each entry less its mean, over its spread, in the instances of other bags."""
        instances = like.X[~like.padding]
        spread = instances.std(0)
        scaled = (self.X - instances.mean(0)) / torch.where(spread > 0, spread, 1)
        return Bags(scaled.masked_fill(self.padding[..., None], 0), self.padding, self.y)


@lru_cache(maxsize=4)
def load(folder: Path | None, name: str) -> Bags:
    """The bags of a set.

    Args:
        folder: where files such as tiger_100x100.mat lie; None: invented bags, whose sign one instance gives away.
        name: how the file's name begins.

    Returns:
        The bags, in the order of their numbers.

    Raises:
        MissingDataError: no such file, or several.
        BadDataError: it holds something else.
    """
    if folder is None:
        draw = torch.Generator().manual_seed(len(name))
        X, y = torch.randn(40, 6, 20, generator=draw), torch.arange(40) % 2
        X[y == 1, 0, :3] += 2
        return Bags(X, torch.arange(6) >= torch.randint(2, 7, (40, 1), generator=draw), y.float())
    found = sorted(folder.glob(f"{name}*.mat"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise MissingDataError(f"expected one set {name}*.mat in {folder}, found {names}")
    features, ids, positive = _instances(found[0])
    numbers, first = np.unique(ids, return_inverse=True)
    bags = [np.flatnonzero(first == bag) for bag in range(len(numbers))]
    if len(positive) == len(bags) != len(ids):  # one label for each bag
        positive = positive[first]
    if len(positive) != len(ids) or len(features) != len(ids):
        counts = f"{len(features)} features, {len(ids)} bag_ids and {len(positive)} labels"
        raise BadDataError(f"{found[0].name}: expected as many of each, found {counts}")
    y = torch.tensor([float(positive[bag].any()) for bag in bags])
    if not 0 < float(y.mean()) < 1:
        raise BadDataError(f"{found[0].name}: expected bags of both classes, found one")
    X = pad_sequence([torch.from_numpy(features[bag]) for bag in bags], batch_first=True)
    sizes = torch.tensor([len(bag) for bag in bags])
    return Bags(X, torch.arange(X.shape[1]) >= sizes[:, None], y)


def _instances(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [N, d] float32, the number of the bag of each [N], and whether labels are positive [N or bags]."""
    raw = loadmat(path)
    lacking = {"features", "labels", "bag_ids"} - set(raw)
    if lacking:
        raise BadDataError(f"{path.name}: expected features, labels and bag_ids, found no {', '.join(sorted(lacking))}")
    features, labels, ids = (
        raw[key].toarray() if issparse(raw[key]) else raw[key] for key in ("features", "labels", "bag_ids")
    )
    values = np.unique(labels.astype(float))
    if len(values) != 2:
        raise BadDataError(f"{path.name}: expected two labels, such as -1 and 1, found {values.tolist()[:5]}")
    if not np.isfinite(features).all():
        raise BadDataError(f"{path.name}: expected finite features, found others")
    return features.astype(np.float32), ids.ravel(), labels.ravel().astype(float) == values[1]
