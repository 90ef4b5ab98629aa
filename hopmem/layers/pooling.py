"""Learned queries retrieve from a set."""

from collections.abc import Iterator
from typing import Unpack

from torch import Tensor, nn

from hopmem.layers.hopfield import Hopfield
from hopmem.layers.options import Options, Output, expect

SPREAD = 0.02  # of the queries before training, which without a map thus begins near the mean of the set


class HopfieldPooling(nn.Module):
    """Learned queries retrieve from a set: attention pooling, whose answer does not depend on the order of the set.

    Args:
        embed_dim: entries E of an answer.
        num_heads: H.
        num_queries: answers for each set.
        options: as of `Hopfield`. `kdim` is the number of entries of an element, and `vdim` follows it.

    Raises:
        UsageError: numbers that fit no layer.
    """

    def __init__(self, embed_dim: int, num_heads: int = 1, *, num_queries: int = 1, **options: Unpack[Options]) -> None:
        super().__init__()
        expect(num_queries >= 1, "num_queries", "at least 1", num_queries)
        widths: Options = {"vdim": options.get("kdim")}
        self.hopfield = Hopfield(embed_dim, num_heads, **(widths | options))
        self.queries = nn.Parameter(self.hopfield.out_proj.weight.new_empty(num_queries, embed_dim))
        nn.init.normal_(self.queries, std=SPREAD)

    def reset_parameters(self) -> None:
        """Draw everything anew."""
        self.hopfield.reset_parameters()
        nn.init.normal_(self.queries, std=SPREAD)

    def forward(
        self,
        key: Tensor,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
        average_attn_weights: bool = True,
    ) -> Output:
        """Pool sets.

        Args:
            key: the sets [B, S, kdim], or one of them [S, kdim].
            value: what is read out of their elements [B, S, vdim]; None: the sets.
            key_padding_mask: [B, S]; this and the rest as of `Hopfield.forward`.
            attn_mask: [num_queries, S] or [B·H, num_queries, S].
            need_weights: return the weights.
            average_attn_weights: over the heads.

        Returns:
            Answers [B, num_queries, E], and weights [B, num_queries, S] (or of each head) or None.
        """
        queries = self.queries.expand(key.shape[0], -1, -1) if key.dim() == 3 else self.queries
        output: Output = self.hopfield(
            queries, key, value, key_padding_mask, attn_mask, need_weights, average_attn_weights
        )
        return output

    def feature_map_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of Φ, which Stage I learns.

        Returns:
            As of `Hopfield`.
        """
        return self.hopfield.feature_map_parameters()

    def features(self, keys: Tensor) -> Tensor:
        """Φ of the elements of sets.

        Args:
            keys: [B, S, kdim].

        Returns:
            Unit features [B, H, S, D], as of `Hopfield`.
        """
        return self.hopfield.features(keys)
