"""Multiple-instance learning: which images hold a tiger (a fox), told for images, seen as sets of regions.

    python -m experiments mil --data FOLDER [--seeds 5] [--sets tiger fox] [--epochs 40] [--folds 10] [--workers 2]

A set is a file such as tiger_100x100.mat, with `features` [N, d], `bag_ids` and `labels` of N instances. The network
embeds each instance, pools a bag with `HopfieldPooling`, and classifies. Outer folds are stratified over bags. In each,
hyper-parameters and the epoch are chosen by the AUC on a part of the training bags that is held out, and the AUC on the
fold of that one network at that one epoch counts.
"""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from experiments.bags import Bags, load
from experiments.learning import (
    COLOURS,
    MARKS,
    MEMORIES,
    Memory,
    StageOne,
    keys_at_once,
    mean_beta,
    paired,
    parts,
    shared_out,
    task_optimizer,
)
from experiments.setting import Setting
from hopmem.layers import HopfieldPooling

SEEDS = 5
WIDTH, BATCH = 64, 16
RATE, DECAY = 1e-3, 1e-2  # of AdamW
HELD_OUT = 0.2  # share of the training bags that choose
PATIENCE = 10  # epochs without a better AUC on them
GRID = tuple(product((1, 8), (0.0, 0.5)))  # heads, dropout


@dataclass(frozen=True)
class Options:
    """What the command line may change."""

    sets: tuple[str, ...] = field(default=("tiger", "fox"), metadata={"help": "names of sets in the folder"})
    epochs: int = field(default=40, metadata={"help": "passes over the training data: mil 40 at most, images 25"})
    folds: int = field(default=10, metadata={"help": "outer folds", "least": 2})
    workers: int = field(default=0, metadata={"help": "processes; 0: as many as there are cores", "least": 0})


QUICK = Options(epochs=2, folds=2, workers=1)


@dataclass(frozen=True)
class Task:
    """One fold for one memory."""

    data: Path | None
    name: str
    seed: int
    fold: int
    folds: int
    memory: Memory
    epochs: int


@dataclass(frozen=True)
class Result:
    """What came out of a fold."""

    set: str
    memory: str
    seed: int
    fold: int
    auc: float  # on the fold
    held_out_auc: float  # of the same network and epoch, on the bags that chose it
    epoch: int
    heads: int
    dropout: float
    beta: float  # mean over heads, at that epoch
    keys: float  # that a query mixes, see `keys_at_once`
    instances: float  # in a bag, mean


class Network(nn.Module):
    """Embed, pool, classify."""

    def __init__(self, entries: int, memory: Memory, heads: int, dropout: float) -> None:
        """Draw a network.

        Args:
            entries: of an instance.
            memory: how the pooling associates.
            heads: of the pooling.
            dropout: of what is embedded and what is pooled.
        """
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(entries, WIDTH), nn.ReLU(), nn.Dropout(dropout))
        self.pool = HopfieldPooling(WIDTH, heads, **memory.options(WIDTH // heads))
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(WIDTH, 1))

    def forward(self, X: Tensor, padding: Tensor) -> Tensor:
        """The logit of each bag [B]."""
        pooled, _ = self.pool(self.embed(X), key_padding_mask=padding)
        return self.classify(pooled[:, 0])[:, 0]

    def keys(self, X: Tensor, padding: Tensor) -> float:
        """How many instances a query mixes."""
        weights = self.pool(self.embed(X), key_padding_mask=padding, need_weights=True, average_attn_weights=False)[1]
        return keys_at_once(weights)


def auc(network: Network, bags: Bags) -> float:
    """Area under the curve of the network's logits."""
    network.eval()
    with torch.no_grad():
        return float(roc_auc_score(bags.y, network(bags.X, bags.padding)))


@dataclass(frozen=True)
class Chosen:
    """A network at the epoch at which it was best on the bags that choose."""

    held_out_auc: float
    auc: float  # of the test
    epoch: int
    beta: float
    keys: float


def trained(
    train: Bags, choose: Bags, test: Bags, memory: Memory, heads: int, dropout: float, seed: int, epochs: int
) -> Chosen:
    """Train one network.

    Returns:
        How it was at its best.
    """
    torch.manual_seed(seed)
    network = Network(train.X.shape[2], memory, heads, dropout)
    optimizer = task_optimizer(network, RATE, DECAY)
    stage_one = StageOne(network, "spherical") if memory.learned else None
    order = torch.Generator().manual_seed(seed)
    best, since = Chosen(-1.0, 0.5, 0, 0.0, 0.0), 0
    for epoch in range(1, epochs + 1):
        network.train()
        for rows in torch.randperm(len(train), generator=order).split(BATCH):
            batch = train[rows]
            if stage_one:
                stage_one.step(batch.X, batch.padding)
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(network(batch.X, batch.padding), batch.y).backward()
            optimizer.step()
        found, since = auc(network, choose), since + 1
        if found > best.held_out_auc:
            with torch.no_grad():
                keys = network.keys(test.X, test.padding)
            best, since = Chosen(found, auc(network, test), epoch, mean_beta(network), keys), 0
        if since >= PATIENCE:
            break
    return best


def run_fold(task: Task) -> Result:
    """Choose among the grid on held-out training bags, and test what was chosen."""
    bags = load(task.data, task.name)
    labels = bags.y.numpy()
    folds = StratifiedKFold(task.folds, shuffle=True, random_state=task.seed).split(labels, labels)
    rest, test = list(folds)[task.fold]
    train, choose = train_test_split(rest, test_size=HELD_OUT, stratify=labels[rest], random_state=task.seed)
    split = [bags[torch.from_numpy(rows)] for rows in (train, choose, test)]
    scaled = [part.standardised(split[0]) for part in split]
    seed = 100 * task.seed + task.fold
    runs = [(trained(*scaled, task.memory, *tried, seed, task.epochs), tried) for tried in GRID]
    chosen, (heads, dropout) = max(runs, key=lambda run: run[0].held_out_auc)  # of equals the first
    return Result(
        set=task.name,
        memory=task.memory.name,
        seed=task.seed,
        fold=task.fold,
        heads=heads,
        dropout=dropout,
        instances=float((~bags.padding).sum(1).float().mean()),
        **asdict(chosen),
    )


def by_run(results: Sequence[Result], name: str, memory: str) -> dict[tuple[int, int], float]:
    """AUC of each seed and fold."""
    mine = (each for each in results if (each.set, each.memory) == (name, memory))
    return {(each.seed, each.fold): each.auc for each in mine}


def seed_means(runs: dict[tuple[int, int], float]) -> list[float]:
    """The mean over folds, for each seed."""
    return [
        fmean(auc for (seed, _), auc in runs.items() if seed == wanted) for wanted in sorted({key[0] for key in runs})
    ]


SUMMARY = (
    "set", "memory", "auc", "spread between seeds", "over no map", "p over no map", "over unit", "p over unit",
    "beta", "keys",
)  # fmt: skip


def summary(results: Sequence[Result], folds: int) -> list[tuple[str | float, ...]]:
    """A row for each set and memory: AUC, its spread between seeds, and paired differences."""
    rows = []
    for name, memory in product(dict.fromkeys(each.set for each in results), MEMORIES):
        runs, kind = by_run(results, name, memory.name), parts(memory.name)[0]
        compared: list[float] = []
        for other in (kind, f"{kind}, unit"):
            against = by_run(results, name, other)
            compared += paired([runs[key] - against[key] for key in runs], shared=1 / ((folds - 1) * (1 - HELD_OUT)))
        means = seed_means(runs)
        spread = stdev(means) if len(means) > 1 else 0.0
        mine = [each for each in results if (each.set, each.memory) == (name, memory.name)]
        beta, keys = fmean(each.beta for each in mine), fmean(each.keys for each in mine)
        rows.append((name, memory.name, fmean(means), spread, *compared, beta, keys))
    return rows


def picture(results: Sequence[Result]) -> Figure:
    """AUC of each memory: a mark for each seed, a line at their mean."""
    names = list(dict.fromkeys(each.set for each in results))
    figure = Figure(figsize=(4.2 * len(names), 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for place, memory in enumerate(MEMORIES):
            means, also = seed_means(by_run(results, name, memory.name)), parts(memory.name)[1]
            axes.plot([place] * len(means), means, MARKS[also], color=COLOURS[also], fillstyle="none")
            axes.hlines(fmean(means), place - 0.3, place + 0.3, color=COLOURS[also])
        axes.set_xticks(range(len(MEMORIES)), [memory.name for memory in MEMORIES], rotation=30, ha="right")
        axes.set_title(name)
        axes.grid(alpha=0.25, axis="y")
    figure.axes[0].set_ylabel("AUC, mean over folds; a mark for each seed")
    return figure


def run(setting: Setting, options: Options | None = None) -> None:
    """Write a row for each set, seed, fold and memory, their summary, and the picture."""
    data = None if setting.quick and setting.data is None else setting.folder
    options = options or (QUICK if setting.quick else Options())
    tasks = [
        Task(data, name, seed, fold, options.folds, memory, options.epochs)
        for name, seed, fold, memory in product(options.sets, setting.repeat(SEEDS), range(options.folds), MEMORIES)
    ]
    results = sorted(shared_out(run_fold, tasks, options.workers or None, "folds"), key=lambda each: astuple(each)[:4])
    setting.write("mil", [each.name for each in fields(Result)], [astuple(each) for each in results])
    setting.write("mil_summary", SUMMARY, summary(results, options.folds))
    setting.save(picture(results), "mil")
