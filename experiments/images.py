"""Image classification by a small vision Hopfield network, on CIFAR-10.

    python -m experiments images --data FOLDER [--seeds 3] [--epochs 25] [--patch 8] [--width 64] [--device cuda]

Patches of 8 pixels are 16 keys (of 4 pixels, 64) beside a token for the class. All memories see the same batches in the
same order from the same first weights. Stage I is U-Hop's average loss, a step before each step of the task. The test
images choose nothing: what counts is the last epoch.
"""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from functools import lru_cache
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.learning import (
    COLOURS,
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
from experiments.setting import Setting, blots
from hopmem.layers import Hopfield

SEEDS = 3
BATCH = 128
RATE, DECAY = 1e-3, 1e-2  # of AdamW; the rate falls to 0 as half a cosine
MEAN, SPREAD = 0.47, 0.25  # of the pixels


@dataclass(frozen=True)
class Options:
    """What the command line may change."""

    epochs: int = field(default=25, metadata={"help": "passes over the training data: mil 40 at most, images 25"})
    patch: int = field(default=8, metadata={"help": "pixels of a side of a patch"})
    width: int = field(default=64, metadata={"help": "entries of a token"})
    depth: int = field(default=2, metadata={"help": "blocks"})
    heads: int = field(default=4, metadata={"help": "of each block"})
    device: str = field(default="cpu", metadata={"help": "such as cpu or cuda"})
    workers: int = field(default=0, metadata={"help": "processes; 0: as many as there are cores", "least": 0})


QUICK = Options(epochs=2, width=16, heads=2, workers=1)


@dataclass(frozen=True)
class Task:
    """One memory, trained once."""

    data: Path | None
    memory: Memory
    seed: int
    options: Options


@dataclass(frozen=True)
class Epoch:
    """What was measured after an epoch."""

    memory: str
    seed: int
    epoch: int
    train_loss: float  # mean over the epoch, as it went
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    beta: float  # mean over heads and blocks
    keys: float  # that a query mixes, mean over blocks, see `keys_at_once`


class Block(nn.Module):
    """A block of a transformer, whose attention is a Hopfield memory."""

    def __init__(self, width: int, heads: int, memory: Memory) -> None:
        """Draw a block."""
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.memory = Hopfield(width, heads, **memory.options(width // heads))
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens [B, N, width]."""
        x = x + self.memory(self.before(x))[0]
        return x + self.mix(self.between(x))


class Network(nn.Module):
    """Patches, a few blocks, a class."""

    def __init__(self, side: int, classes: int, memory: Memory, options: Options) -> None:
        """Draw a network.

        Args:
            side: pixels of an image.
            classes: how many there are.
            memory: how the blocks associate.
            options: sizes.
        """
        super().__init__()
        self.patch, count = options.patch, (side // options.patch) ** 2
        self.embed = nn.Linear(3 * options.patch**2, options.width)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, options.width))
        self.place = nn.Parameter(0.02 * torch.randn(1, count + 1, options.width))
        self.blocks = nn.Sequential(*(Block(options.width, options.heads, memory) for _ in range(options.depth)))
        self.classify = nn.Sequential(nn.LayerNorm(options.width), nn.Linear(options.width, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, side, side]."""
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).mT  # [B, N, 3·patch²]
        tokens = torch.cat([self.token.expand(len(images), -1, -1), self.embed(patches)], 1) + self.place
        return self.classify(self.blocks(tokens)[:, 0])


@dataclass(frozen=True)
class Images:
    """Pictures and their classes."""

    pixels: Tensor  # uint8 [N, 3, side, side]
    classes: Tensor  # int64 [N]

    def batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Some of them, as the network takes them."""
        return (self.pixels[rows].float() / 255 - MEAN) / SPREAD, self.classes[rows]


@lru_cache(maxsize=2)
def load(data: Path | None, device: str) -> tuple[Images, Images]:
    """Images to train on and to test; without a folder, blots."""
    if data is None:
        pixels, classes = blots(60, 3).permute(0, 3, 1, 2).contiguous(), torch.arange(60) % 3
        return Images(pixels[:40], classes[:40]), Images(pixels[40:], classes[40:])
    return tuple(_read(data / name, device) for name in ("cifar10-train20k-jpg.tar", "cifar10-test-jpg.tar"))


def _read(path: Path, device: str) -> Images:
    """A folder for each class, in an archive."""
    with tarfile.open(path) as tar:
        members = sorted((member for member in tar.getmembers() if member.name.endswith(".jpg")), key=lambda m: m.name)
        raw = [tar.extractfile(member).read() for member in members]
    names = [Path(member.name).parent.name for member in members]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in raw]).transpose(0, 3, 1, 2)
    number = {name: place for place, name in enumerate(sorted(set(names)))}
    classes = torch.tensor([number[name] for name in names])
    return Images(torch.from_numpy(np.ascontiguousarray(pixels)).to(device), classes.to(device))


def tested(network: Network, images: Images) -> tuple[float, float, float, float]:
    """Loss and accuracy, β, and the keys that a query mixes."""
    network.eval()
    noted: list[float] = []

    def note(layer: Hopfield, given: tuple[Tensor]) -> None:
        noted.append(keys_at_once(layer.forward(given[0], need_weights=True, average_attn_weights=False)[1]))

    with torch.no_grad():
        logits = torch.cat([network(images.batch(slice(k, k + 1000))[0]) for k in range(0, len(images.classes), 1000)])
        hooks = [block.memory.register_forward_pre_hook(note) for block in network.blocks]
        network(images.batch(slice(0, 500))[0])
    for hook in hooks:
        hook.remove()
    loss = float(cross_entropy(logits, images.classes))
    return loss, float((logits.argmax(1) == images.classes).float().mean()), mean_beta(network), fmean(noted)


def trained(task: Task) -> list[Epoch]:
    """Train a network, and look at it after each epoch."""
    train, test = load(task.data, task.options.device)
    torch.manual_seed(task.seed)
    network = Network(train.pixels.shape[-1], int(train.classes.max()) + 1, task.memory, task.options)
    network.to(task.options.device)
    optimizer = task_optimizer(network, RATE, DECAY)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.options.epochs * -(-len(train.classes) // BATCH))
    stage_one = StageOne(network, "average") if task.memory.learned else None
    order = torch.Generator().manual_seed(task.seed)
    epochs = []
    for epoch in range(1, task.options.epochs + 1):
        network.train()
        total = torch.zeros(2, device=task.options.device)
        for rows in torch.randperm(len(train.classes), generator=order).split(BATCH):
            images, classes = train.batch(rows.to(train.classes.device))
            if stage_one:
                stage_one.step(images)
            logits = network(images)
            loss = cross_entropy(logits, classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total += torch.stack([loss.detach() * len(classes), (logits.argmax(1) == classes).sum()])
        seen = (total / len(train.classes)).tolist()
        epochs.append(Epoch(task.memory.name, task.seed, epoch, *seen, *tested(network, test)))
    return epochs


SUMMARY = (
    "memory", "highest training accuracy", "spread", "test accuracy", "spread of it", "over no map", "p over no map",
    "over unit", "p over unit", "beta", "keys",
)  # fmt: skip


def summary(epochs: Sequence[Epoch]) -> list[tuple[str | float, ...]]:
    """A row for each memory: accuracies with their spread between seeds, and paired differences on the test."""
    last = max(each.epoch for each in epochs)
    test = {(each.memory, each.seed): each.test_accuracy for each in epochs if each.epoch == last}
    seeds = sorted({each.seed for each in epochs})
    rows = []
    for memory in MEMORIES:
        mine, kind = [each for each in epochs if each.memory == memory.name], parts(memory.name)[0]
        highest = [max(each.train_accuracy for each in mine if each.seed == seed) for seed in seeds]
        ended = [test[memory.name, seed] for seed in seeds]
        compared: list[float] = []
        for other in (kind, f"{kind}, unit"):
            compared += paired([test[memory.name, seed] - test[other, seed] for seed in seeds])
        spreads = [stdev(each) if len(seeds) > 1 else 0.0 for each in (highest, ended)]
        beta, keys = (fmean(getattr(e, value) for e in mine if e.epoch == last) for value in ("beta", "keys"))
        rows.append((memory.name, fmean(highest), spreads[0], fmean(ended), spreads[1], *compared, beta, keys))
    return rows


def picture(epochs: Sequence[Epoch]) -> Figure:
    """Loss and accuracy, in training and on the test, epoch by epoch: means over seeds in a band of their spread."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.subplots(2, 4, sharex=True, squeeze=False)
    values = {"train_loss": "training loss", "test_loss": "test loss"}
    values |= {"train_accuracy": "training accuracy", "test_accuracy": "test accuracy"}
    for memory in MEMORIES:
        kind, also = parts(memory.name)
        row = 0 if kind == "dense" else 1
        for axes, (value, label) in zip(grid[row], values.items(), strict=True):
            at = sorted({each.epoch for each in epochs})
            found = [[getattr(e, value) for e in epochs if (e.memory, e.epoch) == (memory.name, epoch)] for epoch in at]
            middle = np.array([fmean(each) for each in found])
            spread = np.array([stdev(each) if len(each) > 1 else 0.0 for each in found])
            axes.fill_between(at, middle - spread, middle + spread, color=COLOURS[also], alpha=0.15, linewidth=0)
            axes.plot(
                at, middle, color=COLOURS[also], linestyle={"": "-", ", unit": "--"}.get(also, "-."), label=memory.name
            )
            axes.set_title(f"{kind}: {label}", fontsize=10)
            axes.grid(alpha=0.25)
    for axes in grid[:, 0]:
        axes.legend(fontsize=8)
    for axes in grid[1]:
        axes.set_xlabel("epoch")
    return figure


def run(setting: Setting, options: Options | None = None) -> None:
    """Write a row for each memory, seed and epoch, their summary, and the picture."""
    data = None if setting.quick and setting.data is None else setting.folder
    options = options or (QUICK if setting.quick else Options())
    tasks = [Task(data, memory, seed, options) for seed, memory in product(setting.repeat(SEEDS), MEMORIES)]
    workers = 1 if options.device != "cpu" else options.workers or None
    found = [epoch for epochs in shared_out(trained, tasks, workers, "networks") for epoch in epochs]
    found.sort(key=lambda each: astuple(each)[:3])
    setting.write("images", [each.name for each in fields(Epoch)], [astuple(each) for each in found])
    setting.write("images_summary", SUMMARY, summary(found))
    setting.save(picture(found), "images")
