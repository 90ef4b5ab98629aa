"""The memory bank: stored patterns, their names, the feature map and what is known of them."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from hopmem import shards
from hopmem.bank import file, sharded
from hopmem.bank.learning import Learning, learning_of
from hopmem.bank.names import Names
from hopmem.bank.rows import as_rows
from hopmem.bank.tuning import EQUAL, SAME, Tuning, tune
from hopmem.divided import Division, everywhere
from hopmem.errors import BankError, InvalidDataError
from hopmem.header import parsed
from hopmem.lock import writing
from hopmem.model.gram import Progress
from hopmem.model.kernel import Exactly, FeatureMap, Features
from hopmem.model.rows import Patterns, small_blocks, taken
from hopmem.model.separation import nearest_delta
from hopmem.scratch import gathered

Layout = Literal["HW", "HWC", "CHW"]  # which axes of a pattern are an image's
CPU = torch.device("cpu")
DIGEST = 16  # bytes that tell rows apart
SKETCH = 64  # entries by which most patterns differ already
MOST_EXACT = 2000  # memories that are measured in float64 where float32 tells nothing
MEASURED = 20_000  # memories up to which β auto looks at every pair; beyond, at as many pairs with a sample


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """Stored patterns Ξ with their names, and the feature map learned for them."""

    patterns: Tensor  # [M, d] in the source's type
    names: Sequence[str]  # [M]
    shape: tuple[int, ...]  # of one pattern, of product d
    scale: float = 1.0  # what one stored unit is worth: 1/255 for 8-bit images
    layout: Layout | None = None  # HW, HWC or CHW, where the patterns are images
    resized: tuple[int, int] | None = None  # (width, height) that images were brought to, and queries will be
    phi: FeatureMap = field(default_factory=FeatureMap)  # identity in a raw bank
    features: Tensor | None = None  # Z [M, D] float32, once a map is learned
    values: Tensor | None = None  # [M, n], read out instead of the patterns (hetero-association)
    values_shape: tuple[int, ...] | None = None  # of one value
    values_scale: float = 1.0
    values_layout: Layout | None = None
    objective: str = "raw"  # or what the map was learned for
    alpha: float = 1.0
    seed: int = 0
    tuning: Tuning | None = None  # None until it is measured
    learning: Learning | None = None
    shard_size: int | None = None  # bytes of a file, where the bank is written in several

    @classmethod
    def from_patterns(cls, X: Any, names: Iterable[str] | None = None, values: Any = None) -> "MemoryBank":
        """Make a raw bank, W = I and b = 0: the cosine memory.

        Args:
            X: array or tensor [M, ...] of finite numbers; each row is a pattern.
            names: M names; None numbers the rows.
            values: array or tensor [M, ...] to read out instead of the patterns.

        Returns:
            The bank.

        Raises:
            InvalidDataError: no rows, NaN or infinities, or counts that differ.
        """
        stored = as_rows(X, "patterns")
        kept = tuple(str(row) for row in range(len(stored))) if names is None else tuple(map(_encodable, names))
        if len(kept) != len(stored):
            raise InvalidDataError("names", f"{len(stored)}, one for each pattern", len(kept))
        paired = None if values is None else as_rows(values, "values")
        if paired is not None and len(paired) != len(stored):
            raise InvalidDataError("values", f"{len(stored)} rows, one for each pattern", len(paired))
        return cls(
            patterns=stored.reshape(len(stored), -1),
            names=kept,
            shape=tuple(stored.shape[1:]) or (1,),
            values=None if paired is None else paired.reshape(len(paired), -1),
            values_shape=None if paired is None else tuple(paired.shape[1:]) or (1,),
        )

    def __len__(self) -> int:
        """Count the patterns.

        Returns:
            M.
        """
        return len(self.patterns)

    @property
    def dimension(self) -> int:
        """The number of entries d of a pattern."""
        return self.patterns.shape[1]

    @property
    def feature_dimension(self) -> int:
        """The dimension D of feature space."""
        return self.phi.dimension(self.dimension)

    def rows(self, device: torch.device = CPU) -> Patterns:
        """Ξ, to be read in blocks.

        Returns:
            The patterns as float32 on `device`; what is worked out for them once stays with the bank.
        """
        if device not in self._rows:
            self._rows[device] = Patterns(self.patterns, self.scale, device)
        return self._rows[device]

    def readout(self, device: torch.device = CPU) -> Patterns:
        """What an answer is made of: the values where there are any, else the patterns.

        Returns:
            Its rows as float32 on `device`.
        """
        if self.values is None:
            return self.rows(device)
        if device not in self._readouts:
            self._readouts[device] = Patterns(self.values, self.values_scale, device)
        return self._readouts[device]

    def memory(self, device: torch.device = CPU, hold: int = 0) -> Features:
        """Z, to be read in blocks; what is worked out for it once stays with the bank.

        Args:
            device: where the blocks come out.
            hold: bytes that Z may take there, where it is not stored.

        Returns:
            The unit features on `device`.
        """
        if device not in self._memories:
            self._memories[device] = Features(self.rows(device), self._phi.to(device), self.features)
        self._memories[device] = self._memories[device].held(hold)
        return self._memories[device]

    @cached_property
    def _rows(self) -> dict[torch.device, Patterns]:
        """The patterns on each device that was asked for."""
        return {}

    @cached_property
    def _readouts(self) -> dict[torch.device, Patterns]:
        """The values on each device that was asked for."""
        return {}

    @cached_property
    def _memories(self) -> dict[torch.device, Features]:
        """Z on each device that was asked for."""
        return {}

    def raw_memory(self, device: torch.device = CPU) -> Features:
        """The unit features of the identity map, whatever was learned.

        Returns:
            The unit patterns on `device`.
        """
        return Features(self.rows(device))

    def tuned(self, device: torch.device = CPU, block: int = 1024, progress: Progress | None = None) -> "MemoryBank":
        """Measure the separation once, for β auto.

        Returns:
            The bank with its tuning; itself where it has one.
        """
        if self.tuning is not None:
            return self
        sample = None
        if len(self) > MEASURED:
            draw = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed))
            sample = draw[: MEASURED * MEASURED // len(self) // 2].sort().values
        memory, same = self.memory(device), SAME
        delta = nearest_delta(memory, sample, block, progress)
        if not bool((delta > SAME).any()) and sample is None and len(distinct := self.distinct) > 1:
            # Every pattern has a copy: what sets the different ones apart is measured between them.
            once = replace(self.rows(device), stored=gathered(self.patterns, distinct))
            memory = Features(once, self._phi.to(device))
            delta = nearest_delta(memory, None, block)
        if not bool((delta > SAME).any()):  # an offset that all share, say, beside which float32 loses what differs
            few = torch.arange(len(memory)) if sample is None else sample
            few = few[:: -(-len(few) // MOST_EXACT)]
            delta, same = nearest_delta(Exactly(memory), few, max(16, block // 2), progress), EQUAL
        return self.noting(tuning=tune(delta, len(self), sampled=len(delta) < len(memory), same=same))

    def near(self, mean: Tensor) -> "MemoryBank":
        """The same bank, whose map is computed from another point: each part would else round in another way.

        Args:
            mean: of all patterns, also of those that others hold [d].

        Returns:
            The bank.
        """
        found = replace(self)
        found.__dict__["_phi"] = self.phi.near(mean)
        return found

    def noting(self, **facts: Any) -> "MemoryBank":
        """The same patterns and the same map with other facts beside them; what was worked out for them stays.

        Args:
            facts: fields that neither a pattern nor a feature depends on.

        Returns:
            The bank.
        """
        noted, worked_out = replace(self, **facts), ("_rows", "_memories", "duplicates")
        noted.__dict__.update({name: self.__dict__[name] for name in worked_out if name in self.__dict__})
        return noted

    @cached_property
    def _phi(self) -> FeatureMap:
        """The feature map, computed from the mean of the patterns, near which all of them lie."""
        return self.phi if self.phi.b is None else self.phi.near(self.rows().mean())

    @cached_property
    def duplicates(self) -> list[list[int]]:
        """Groups of patterns that are equal in every entry, by their rows."""
        some = torch.linspace(0, self.dimension - 1, min(self.dimension, SKETCH), dtype=torch.float64).long()
        return sorted(_same_bytes(self.patterns, _alike(self.patterns, some)))  # few must be read whole

    @property
    def distinct(self) -> Tensor:
        """The rows of the patterns, each pattern once: int64, in order."""
        copies = {row for group in self.duplicates for row in group[1:]}
        return torch.tensor([row for row in range(len(self)) if row not in copies])

    def save(self, path: str | Path, *, beside: Mapping[str, str] | None = None, force: bool = True) -> None:
        """Write the bank whole or not at all; in several files and an index where it is larger than `shard_size`.

        Args:
            path: the file, by custom *.safetensors.
            beside: what else its header shall keep.
            force: whether a file that stands there may be replaced.
        """
        tensors = self._row_tensors | {"feature_map.weight": self.phi.W, "feature_map.bias": self.phi.b}
        path, metadata = shards.base(path), self._metadata() | dict(beside or {})
        with writing(path):
            sharded.write(path, tensors | file.names_to(self.names), metadata, self.shard_size, force=force)

    @classmethod
    def load(cls, path: str | Path) -> "MemoryBank":
        """Open a bank; its tensors stay memory-mapped.

        Args:
            path: the file, or of several the name that their index has, with or without `.index.json`.

        Returns:
            The bank.
        """
        return shards.steadily(path, lambda: cls._of(path, sharded.read(path)))

    @classmethod
    def outline(cls, path: str | Path) -> "MemoryBank":
        """Open a bank without its rows, which other processes hold: of them it has shape and type alone.

        Args:
            path: as of `load`.

        Returns:
            The bank; patterns, features and values are on the device `meta`.
        """
        return shards.steadily(path, lambda: cls._of(path, sharded.outline(path)))

    def part(self, path: str | Path, rows: slice) -> "MemoryBank":
        """Some rows of a bank under the same map.

        Args:
            path: of the bank, of which this is the outline.
            rows: a range of all rows, which alone are read.

        Returns:
            A bank without names.

        Raises:
            BankError: those rows are of another bank.
        """
        found, own = sharded.rows(path, rows), self._row_tensors
        empty = {name: None if X is None else torch.empty(0, X.shape[1], dtype=X.dtype) for name, X in own.items()}
        for name, X in found.items():
            if (like := own[name]) is None or (like.shape[1:], like.dtype) != (X.shape[1:], X.dtype):
                raise BankError(path, f"the {name} of one bank", "those of another")
        tensors: dict[str, Any] = empty | found
        return replace(self, names=(), **tensors)

    @property
    def _row_tensors(self) -> dict[str, Tensor | None]:
        """The tensors with a row for each pattern."""
        return {"patterns": self.patterns, "features": self.features, "values": self.values}

    @classmethod
    def _of(cls, path: str | Path, found: tuple[dict[str, Tensor], dict[str, str]]) -> "MemoryBank":
        """A bank from the tensors and the metadata of its files.

        Returns:
            The bank.

        Raises:
            BankError: they do not make one.
        """
        index = shards.find(path)
        try:
            bank = _checked(path, _assemble(*found))
        except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
            raise BankError(path, f"a whole {file.FORMAT}", f"{type(error).__name__}: {error}") from error
        return replace(bank, shard_size=None if index is None else index.shard_size)

    def _metadata(self) -> dict[str, str]:
        """What the header says beside the tensors.

        Returns:
            Strings: the fields as JSON.
        """
        plain = {
            "shape": self.shape,
            "scale": self.scale,
            "layout": self.layout,
            "mode": self.mode,
            "resized": self.resized,
            "values_shape": self.values_shape,
            "values_scale": self.values_scale,
            "values_layout": self.values_layout,
            "objective": self.objective,
            "alpha": self.alpha,
            "beta": None if self.tuning is None else self.tuning.beta,
            "seed": self.seed,
            "centred": self.phi.centred,
            "tuning": self.tuning and asdict(self.tuning),
            "learning": self.learning and asdict(self.learning),
        }
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in plain.items()}

    @property
    def mode(self) -> str | None:
        """L or RGB, where the patterns are images of one or three channels."""
        if self.layout is None:
            return None
        channels = 1 if len(self.shape) == 2 else self.shape[-1 if self.layout == "HWC" else 0]
        return {1: "L", 3: "RGB"}.get(channels)


def _alike(X: Tensor, columns: Tensor) -> Tensor:
    """Rows that some other row equals in some entries; a few more by chance.

    Returns:
        Rows, int64, in order.
    """
    digests = everywhere(X, _short_digests, X, columns)
    order = digests.argsort()
    repeated = digests[order].diff() == 0
    first = torch.zeros(1, dtype=torch.bool)
    return order[torch.cat([repeated, first]) | torch.cat([first, repeated])].sort().values


def _short_digests(part: Division, X: Tensor, columns: Tensor) -> Tensor:
    """A digest of some entries of each row.

    Returns:
        int64 [M].
    """
    digests = torch.empty(len(X), dtype=torch.int64)
    for rows in small_blocks(*X.shape):
        short = (int.from_bytes(each[:8], "little", signed=True) for each in _digests(X[rows, columns]))
        digests[rows] = torch.tensor(list(short))
    return part.others.to_first(digests)


def _same_bytes(X: Tensor, rows: Tensor) -> list[list[int]]:
    """Groups of equal rows among some of them.

    Returns:
        The groups of two and more.
    """
    groups: dict[bytes, list[int]] = {}
    for row, digest in zip(rows.tolist(), everywhere(X, _long_digests, X, rows).numpy(), strict=True):
        groups.setdefault(digest.tobytes(), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _long_digests(part: Division, X: Tensor, rows: Tensor) -> Tensor:
    """A digest of each of some rows.

    Returns:
        uint8 [m, 16].
    """
    own = rows[part.own(rows, len(X))] - part.start
    digests = torch.empty(len(own), DIGEST, dtype=torch.uint8)
    for some in small_blocks(len(own), X.shape[1]):
        found = b"".join(_digests(taken(X, own[some])))
        digests[some] = torch.frombuffer(bytearray(found), dtype=torch.uint8).view(-1, DIGEST)
    return part.others.to_first(digests)


def _digests(X: Tensor) -> Iterator[bytes]:
    """A digest of the bytes of each row; −0 and 0 are one number in two ways.

    Yields:
        16 bytes.
    """
    X = (X + 0 if X.is_floating_point() else X).contiguous()
    for raw in X.view(torch.uint8).numpy():
        yield hashlib.blake2b(raw, digest_size=DIGEST).digest()


def _encodable(name: str) -> str:
    """A name that UTF-8 can hold, with the lone surrogates that stand for other bytes in file names.

    Returns:
        The name.

    Raises:
        InvalidDataError: it can't.
    """
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidDataError("names", "text", ascii(name)) from error
    return name


def _assemble(tensors: dict[str, Tensor], metadata: dict[str, str]) -> MemoryBank:
    """A bank from what the file holds.

    Returns:
        The bank, unchecked.
    """

    def read(key: str) -> Any:
        return parsed(metadata[key].encode())

    def read_layout(key: str) -> Layout | None:
        if metadata[key] not in {"null", *get_args(Layout)}:
            raise ValueError(f"{key} is {metadata[key]!r}")
        return None if metadata[key] == "null" else cast(Layout, metadata[key])

    def read_tuple(key: str) -> Any:
        return None if (value := read(key)) is None else tuple(value)

    tuning, learning = read("tuning"), read("learning")
    return MemoryBank(
        patterns=tensors["patterns"],
        names=Names(tensors["names"], tensors["names.offsets"]),
        shape=read_tuple("shape"),
        scale=float(read("scale")),
        layout=read_layout("layout"),
        resized=read_tuple("resized"),
        phi=FeatureMap(
            tensors.get("feature_map.weight"),
            tensors.get("feature_map.bias"),
            centred=metadata.get("centred") == "true",
        ),
        features=tensors.get("features"),
        values=tensors.get("values"),
        values_shape=read_tuple("values_shape"),
        values_scale=float(read("values_scale")),
        values_layout=read_layout("values_layout"),
        objective=metadata["objective"],
        alpha=float(read("alpha")),
        seed=int(read("seed")),
        tuning=tuning and Tuning(**tuning),
        learning=learning and learning_of(learning),
    )


def _checked(path: str | Path, bank: MemoryBank) -> MemoryBank:
    """Cross-check the shapes of a bank.

    Returns:
        The bank.

    Raises:
        BankError: tensors that do not belong together.
    """
    M, d, D = len(bank.patterns), bank.patterns.shape[-1], bank.feature_dimension
    expected: Sequence[tuple[str, tuple[int, ...], Tensor | None]] = (
        ("patterns", (M, torch.Size(bank.shape).numel()), bank.patterns),
        ("feature_map.weight", (D, d), bank.phi.W),
        ("feature_map.bias", (d + 1 if bank.phi.W is None else D,), bank.phi.b),
        ("features", (M, D), bank.features),
        ("values", (M, torch.Size(bank.values_shape or ()).numel()), bank.values),
    )
    for name, shape, tensor in expected:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise BankError(path, f"tensor {name} of shape {list(shape)}", list(tensor.shape))
    for what, number, least in (("scale", bank.scale, 0.0), ("alpha", bank.alpha, 1.0)):
        if not (math.isfinite(number) and number >= least):
            raise BankError(path, f"{what} of {least:g} or more", number)
    if not M or len(bank.names) != M:
        raise BankError(path, f"{max(M, 1)} patterns with a name each", f"{len(bank.names)} names")
    return bank
