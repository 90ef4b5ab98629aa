"""The kernel K(u, v) = ⟨Φ(u), Φ(v)⟩ of a linear feature map Φ(u) = W u + b, on unit features."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from hopmem.divided import Division, made
from hopmem.errors import InvalidDataError
from hopmem.model.rows import LONG, Patterns, Rows, blocks, taken, unit
from hopmem.pages import scarce
from hopmem.scratch import SCATTERED, empty


def processor_has(instructions: str) -> bool:
    """Whether the processor has instructions, as far as torch can tell: what it asks has no public name.

    Args:
        instructions: such as vnni or avx512_bf16.

    Returns:
        False where this torch does not know of them.
    """
    probe = getattr(torch.cpu, f"_is_{instructions}_supported", None)
    return probe is not None and bool(probe())


@dataclass(frozen=True)
class FeatureMap:
    """Φ(u) = W u + b (U-Hop, eq. 3.1, with an offset for centring).

    K depends on WᵀW alone, so W is free up to a rotation of feature space. Where a row of W is zero and its entry of b
    is large beside the rest (`lifted`), the cosine of features ranks memories as the Euclidean distance does.
    """

    W: Tensor | None = None  # [D, d]; None is the identity, which no d×d matrix has to hold
    b: Tensor | None = None  # [D]; None is zero; of the identity [d + 1], the last entry a lift
    origin: Tensor | None = None  # [d], a point m near the patterns, from which Φ is computed: W(u − m) + (W m + b)
    centred: bool = False  # of the identity: each row's own mean is taken off first

    def __call__(self, U: Tensor) -> Tensor:
        """Map rows to feature space.

        Args:
            U: rows of patterns [N, d].

        Returns:
            Their features, not normalised [N, D].
        """
        if self.W is None:
            U = U - U.mean(1, keepdim=True) if self.centred else U
            return U if self.b is None else pad(U, (0, len(self.b) - U.shape[1])) + self.b.to(U)
        W = self.W.to(U.dtype)
        if self.origin is None:
            return linear(U, W, None if self.b is None else self.b.to(W))
        return linear(U - self.origin, W, self._at_origin().to(W))

    @property
    def is_identity(self) -> bool:
        """Whether Φ(u) = u."""
        return self.W is None and self.b is None and not self.centred

    def dimension(self, d: int) -> int:
        """The dimension of feature space.

        Args:
            d: entries of a pattern.

        Returns:
            D.
        """
        if self.W is not None:
            return self.W.shape[0]
        return d if self.b is None else len(self.b)

    def near(self, origin: Tensor) -> "FeatureMap":
        """The same map, computed from a point near the patterns.

        Where all patterns share a large offset, W u and b cancel, and float32 has lost what is left.

        Args:
            origin: m [d], the mean of the patterns, say.

        Returns:
            The map; itself where there is nothing that could cancel.
        """
        return self if self.W is None or self.b is None else replace(self, origin=origin.to(self.W))

    def to(self, device: torch.device) -> "FeatureMap":
        """Move the map.

        Returns:
            The same map on `device`.
        """
        W, b, origin = (None if part is None else part.to(device) for part in (self.W, self.b, self.origin))
        return FeatureMap(W, b, origin, self.centred)

    def centre(self) -> Tensor | None:
        """A pattern r with Φ(r) = 0, as nearly as W can reach (a lift stays), the nearest to the map's origin.

        Returns:
            r [d], or None where Φ has no offset and r is zero.
        """
        if self.W is None or self.b is None:
            return None
        W, c = self.W.double(), self._at_origin()
        gram = W @ W.T
        gram.diagonal().add_(1e-12 * gram.diagonal().mean())  # W may have fewer than D dimensions
        start = W.new_zeros(W.shape[1]) if self.origin is None else self.origin.double()
        r: Tensor = start - W.T @ torch.linalg.solve(gram, c)
        return r.to(self.W)

    def restricted(self, columns: Tensor, centre: Tensor | None) -> "FeatureMap":
        """The map that sees some entries only: u ↦ Σ_k W_k (u_k − r_k) + Φ(r) over the entries k in `columns`.

        Args:
            columns: the entries that are seen, int64 [k].
            centre: r of `centre()`; where an unseen entry equals r's, both maps agree.

        Returns:
            A map of patterns with k entries.
        """
        if self.W is None:
            return self if self.b is None else replace(self, b=torch.cat([self.b[columns], self.b[-1:]]))
        W = self.W[:, columns]
        if centre is None:
            return FeatureMap(W)
        seen, r = centre[columns], centre.double()
        rest = self._at_origin() + self.W.double() @ (r if self.origin is None else r - self.origin.double())  # Φ(r)
        return FeatureMap(W, rest - W.double() @ seen.double(), seen)

    def _at_origin(self) -> Tensor:
        """Φ of the origin.

        Returns:
            W m + b [D], float64.
        """
        assert self.W is not None  # the identity is never asked
        assert self.b is not None
        b = self.b.double()
        return b if self.origin is None else b + self.W.double() @ self.origin.double()


@dataclass(frozen=True)
class Features:
    """Z, the unit features of the memories, read where they are stored and else computed as the patterns are read."""

    patterns: Patterns
    phi: FeatureMap = FeatureMap()
    stored: Tensor | None = None  # [M, D] float32, where a learned map has left them

    def __len__(self) -> int:
        """Count the memories.

        Returns:
            M.
        """
        return len(self.patterns)

    def __reduce__(self) -> tuple[Any, ...]:
        """What others make the same of.

        Returns:
            The fields.
        """
        return type(self), (self.patterns, self.phi, self.stored)

    @property
    def source(self) -> Tensor:
        """What patterns are read from."""
        return self.patterns.stored

    @property
    def dimension(self) -> int:
        """The dimension D of feature space."""
        return self.phi.dimension(self.patterns.dimension)

    @property
    def device(self) -> torch.device:
        """Where the blocks come out."""
        return self.patterns.device

    @property
    def kind(self) -> torch.dtype:
        """The type that rows are read in (`raw`)."""
        if self.stored is not None:
            return self.stored.dtype
        return self.source.dtype if self.plain else torch.float32

    def __getitem__(self, rows: Rows) -> Tensor:
        """The unit features of some memories.

        Returns:
            float32 [m, D] on the device.

        Raises:
            InvalidDataError: the map leaves float32.
        """
        if self.stored is not None:
            return taken(self.stored, rows).to(self.device, torch.float32)
        Z = unit(self.phi(self.patterns[rows]))
        if self.phi.W is not None and not math.isfinite(float(Z.sum())):  # NaN if any is; takes no memory
            raise InvalidDataError("features", "a map whose features float32 can hold", "infinite ones")
        return Z

    def products(self, rows: slice, T: Tensor, out: Tensor | None = None) -> Tensor:
        """⟨z_μ, y⟩ of some memories and all states, as precisely as the type of the states.

        Args:
            rows: m memories.
            T: states as columns [D, b].
            out: where the products may go [≥ m, b].

        Returns:
            [m, b] of the type of T.
        """
        if T.dtype == torch.float64:
            return torch.mm(self.exact(rows), T, out=None if out is None else out[: rows.stop - rows.start])
        U, scale = self.raw(rows)
        if T.shape[1] == 1:  # twice as fast as the product of two matrices
            S = torch.mv(U.to(T), T[:, 0])[:, None]
        else:
            S = torch.mm(U.to(T), T, out=None if out is None else out[: len(U)])
        return S if scale is None else S.mul_(scale.to(T)[:, None])

    def raw(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """The unit features of some memories, or rows in the type they are stored in and what makes them those.

        To scale a product costs less than to scale a pattern.

        Args:
            rows: m memories.

        Returns:
            Rows [m, D], perhaps on another device, and factors [m] where they are not of length one.
        """
        if self.stored is not None:
            return taken(self.stored, rows), None
        return (taken(self.patterns.stored, rows), self.inverse_lengths[rows]) if self.plain else (self[rows], None)

    @cached_property
    def inverse_lengths(self) -> Tensor:
        """1/‖ξ_μ‖ of the patterns in stored units, 0 for a zero pattern [M]."""
        lengths = self.patterns.lengths
        return torch.where(lengths > 0, self.patterns.scale / lengths, 0)

    def part(self, rows: slice, columns: slice) -> Tensor:
        """Some entries of the unit features of some memories, where these are `plain`.

        Args:
            rows: m memories.
            columns: k entries.

        Returns:
            float32 [m, k] on the device.
        """
        U, scale = self.patterns.stored[rows, columns], self.inverse_lengths[rows, None]
        if not scarce():
            return U.to(self.device, torch.float32) * scale
        part = torch.empty(U.shape, device=self.device)
        for some in blocks(len(U), SCATTERED):
            torch.mul(U[some].to(self.device, torch.float32), scale[some], out=part[some])
        return part

    @cached_property
    def plain(self) -> bool:
        """Whether features are the patterns divided by lengths whose squares float32 holds."""
        if not self.phi.is_identity or self.patterns.columns is not None:
            return False
        inverse = self.inverse_lengths
        return bool((((inverse > 1 / LONG) & (inverse < LONG)) | (inverse == 0)).all())

    def exact(self, rows: Rows) -> Tensor:
        """The unit features of some memories, to more digits where no matrix stands between.

        A learned map's are those that float32 holds, whether they are stored or not.

        Args:
            rows: m memories.

        Returns:
            float64 [m, D] on the device.
        """
        if self.phi.W is not None:
            return self[rows].double()
        return unit(self.phi(self.patterns[rows].double()))

    def held(self, budget: int) -> "Features":
        """Keep Z at hand where it fits.

        Args:
            budget: bytes that Z may take.

        Returns:
            These features with Z computed once, or unchanged where Z is stored already or is larger than `budget`.
        """
        if self.stored is not None or len(self) * self.dimension * 4 > budget:
            return self
        return replace(self, stored=self.whole())

    def whole(self) -> Tensor:
        """Z as one tensor, or where the patterns are.

        Returns:
            float32 [M, D] on the device.
        """
        return made(self, _whole, self)

    def restricted(self, columns: Tensor, centre: Tensor | None) -> "Features":
        """The features of the memories' entries in `columns` alone.

        Args:
            columns: the entries that are seen, int64 [k].
            centre: Φ's zero, `phi.centre()`.

        Returns:
            Features of patterns with k entries, computed as they are read.
        """
        seen = replace(self.patterns, columns=columns)
        return Features(seen, self.phi.restricted(columns, centre))


def _whole(_part: Division, memory: Features) -> Tensor:
    """The unit features that are held here.

    Returns:
        float32 [M, D] on the device.
    """
    M, D, on_cpu = len(memory), memory.dimension, memory.device.type == "cpu"
    Z = empty(M, D) if on_cpu else torch.empty(M, D, device=memory.device)
    for rows in memory.patterns.in_blocks():
        Z[rows] = memory[rows]
    return Z


@dataclass(frozen=True)
class Exactly:
    """Unit features whose rows come in float64."""

    features: Features

    def __len__(self) -> int:
        """Count the memories.

        Returns:
            M.
        """
        return len(self.features)

    @property
    def source(self) -> Tensor:
        """What patterns are read from."""
        return self.features.source

    def __getitem__(self, rows: Rows) -> Tensor:
        """The unit features of some memories.

        Returns:
            float64 [m, D].
        """
        return self.features.exact(rows)
