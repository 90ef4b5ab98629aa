"""Queries retrieve from memories of the layer's own."""

from collections.abc import Iterator
from typing import Unpack

from torch import Tensor, nn

from hopmem.errors import InvalidDataError
from hopmem.layers.hopfield import Hopfield
from hopmem.layers.options import Options, Output, expect


class HopfieldLayer(nn.Module):
    """Queries retrieve from memories of the layer's own.

    Args:
        embed_dim: entries E of a query and of an answer.
        num_memories: M.
        num_heads: H.
        memories: what is compared with the queries [M, kdim], fixed; a `torch.nn.Parameter` is learned. None: drawn,
            and learned.
        values: what is read out of them [M, vdim], fixed or learned alike; None: the memories.
        options: as of `Hopfield`; memories and values that are given tell `kdim` and `vdim`.

    Raises:
        UsageError: numbers that fit no layer.
        InvalidDataError: memories or values of another shape.
    """

    memories: Tensor
    values: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_memories: int,
        num_heads: int = 1,
        *,
        memories: Tensor | None = None,
        values: Tensor | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        expect(num_memories >= 1, "num_memories", "at least 1", num_memories)
        for name, given in (("memories", memories), ("values", values)):
            if given is not None and not isinstance(given, Tensor):
                raise InvalidDataError(name, f"a tensor of shape [{num_memories}, entries]", type(given).__name__)
            if given is not None and (given.dim() != 2 or len(given) != num_memories):
                raise InvalidDataError(name, f"shape [{num_memories}, entries]", list(given.shape))
        kdim = options.get("kdim") if memories is None else memories.shape[1]
        widths: Options = {"kdim": kdim, "vdim": kdim if values is None else values.shape[1]}
        for width in ("kdim", "vdim"):
            told = options.get(width) is None or options.get(width) == (widths.get(width) or embed_dim)
            expect(told, width, f"{widths.get(width)}, the entries of what is given", options.get(width))
        self.hopfield = Hopfield(embed_dim, num_heads, **(options | widths))
        self._drawn = memories is None
        drawn = self.hopfield.out_proj.weight.new_empty(num_memories, self.hopfield.kdim)
        self._own("memories", nn.Parameter(drawn) if memories is None else memories)
        self._own("values", values)
        self._draw()

    def reset_parameters(self) -> None:
        """Draw what is learned anew; memories that were given stay."""
        self.hopfield.reset_parameters()
        self._draw()

    def forward(
        self,
        query: Tensor,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
        average_attn_weights: bool = True,
    ) -> Output:
        """Retrieve.

        Args:
            query: [B, L, E], or [L, E] without a batch.
            attn_mask: [L, M] or [B·H, L, M]; this and the rest as of `Hopfield.forward`.
            need_weights: return the weights.
            average_attn_weights: over the heads.

        Returns:
            Answers [B, L, E], and weights [B, L, M] (or of each head) or None.
        """
        key = self.memories[None]
        value = key if self.values is None else self.values[None]
        output: Output = self.hopfield(query, key, value, None, attn_mask, need_weights, average_attn_weights)
        return output

    def feature_map_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of Φ, which Stage I learns.

        Returns:
            As of `Hopfield`.
        """
        return self.hopfield.feature_map_parameters()

    def features(self, keys: Tensor | None = None) -> Tensor:
        """Φ of keys.

        Args:
            keys: [B, S, kdim]; None: the memories.

        Returns:
            Unit features [B, H, S, D], as of `Hopfield`; B = 1 for the memories.
        """
        return self.hopfield.features(self.memories[None] if keys is None else keys)

    def _own(self, name: str, rows: Tensor | None) -> None:
        """Keep rows with the layer: learned, or fixed and saved with its state."""
        if isinstance(rows, nn.Parameter):
            self.register_parameter(name, rows)
        else:  # a copy, which nobody else writes to
            fixed = None if rows is None else rows.detach().to(self.hopfield.out_proj.weight, copy=True)
            self.register_buffer(name, fixed)

    def _draw(self) -> None:
        if self._drawn:
            nn.init.normal_(self.memories)
