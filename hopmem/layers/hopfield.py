"""Queries retrieve from keys: the layer that stands in the place of attention."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hopmem.errors import InvalidDataError
from hopmem.layers.masks import mask_of
from hopmem.layers.options import Options, Output, Rate, expect, for_each_head
from hopmem.model import attention


class Hopfield(nn.Module):
    """Queries retrieve from keys by the update of a kernelized modern Hopfield network.

    Where torch's attention mixes by softmax(q kᵀ/√d), each head mixes by α-entmax(β Φ(q) Φ(k)ᵀ), several times if asked
    to: in between, the mixture of keys is the next query (Ramsauer et al., 2020, arXiv 2008.02217).

    Args:
        embed_dim: entries E of a query and of an answer.
        num_heads: H; each works on d = E/H entries.
        kdim: entries of a key; None: E.
        vdim: entries of a value; None: E.
        feature_dim: D of the feature map Φ(u) = W u of each head, whose features have unit length (U-Hop, 2024, arXiv
            2404.03827); an isometry at first, or where D < d a projection. None: no map, and scores are products.
        alpha: α ≥ 1, for all heads or each: 1 softmax, 2 sparsemax.
        beta: β, for all heads or each; None: 1/√d, which gives products of entries of unit variance a spread of 1, and
            with a map √min(D, d), which gives cosines in all directions the same.
        steps: updates; the last reads the values.
        dropout: share of the weights that the readout leaves out in training.
        bias: whether the projections have one.
        learn_alpha: whether α of each head is a parameter; α − 1 is, which never leads below 1, and decays to softmax.
        learn_beta: whether β of each head is one; its logarithm is.
        device: where the parameters are.
        dtype: their type.

    Raises:
        UsageError: numbers that fit no layer.
    """

    # torch's TransformerEncoderLayer asks for these: its fused path would read the projections and nothing else.
    batch_first = True
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        feature_dim: int | None = None,
        alpha: Rate = 1.0,
        beta: Rate | None = None,
        steps: int = 1,
        dropout: float = 0.0,
        bias: bool = True,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "steps": steps}
        for name, size in {**sizes, "kdim": kdim, "vdim": vdim, "feature_dim": feature_dim}.items():
            expect(size is None or (isinstance(size, int) and size >= 1), name, "a whole number from 1 upward", size)
        expect(embed_dim % num_heads == 0, "embed_dim", f"a multiple of num_heads = {num_heads}", embed_dim)
        expect(0 <= dropout <= 1, "dropout", "a share from 0 to 1", dropout)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim, self.feature_dim = kdim or embed_dim, vdim or embed_dim, feature_dim
        self.steps, self.dropout = steps, dropout

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        packed = self.kdim == self.vdim == embed_dim
        self.in_proj_weight = parameter(3 * embed_dim, embed_dim) if packed else None
        self.q_proj_weight = None if packed else parameter(embed_dim, embed_dim)
        self.k_proj_weight = None if packed else parameter(embed_dim, self.kdim)
        self.v_proj_weight = None if packed else parameter(embed_dim, self.vdim)
        self.in_proj_bias = parameter(3 * embed_dim) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.feature_map = None if feature_dim is None else parameter(num_heads, feature_dim, self.head_dim)  # W
        usual = 1 / math.sqrt(self.head_dim) if feature_dim is None else math.sqrt(min(feature_dim, self.head_dim))
        self._alpha = for_each_head("alpha", alpha, num_heads, least=1)
        self._beta = for_each_head("beta", usual if beta is None else beta, num_heads, least=0)
        expect(not learn_beta or min(self._beta) > 0, "beta", "more than 0 where it is learned", min(self._beta))
        self.learned_excess = parameter(num_heads) if learn_alpha else None  # α − 1
        self.learned_log_beta = parameter(num_heads) if learn_beta else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections as `torch.nn.MultiheadAttention` does, and feature maps as isometries; set rates."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        self.out_proj.reset_parameters()
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        with torch.no_grad(), torch.random.fork_rng():  # what is drawn next is what it is without a map
            for W in () if self.feature_map is None else self.feature_map:
                W.copy_(nn.init.orthogonal_(torch.empty_like(W, dtype=torch.float32)))  # half precision can't find it
        if self.learned_excess is not None:
            self.learned_excess.data.copy_(torch.tensor([alpha - 1 for alpha in self._alpha]))
        if self.learned_log_beta is not None:
            self.learned_log_beta.data.copy_(torch.tensor([math.log(beta) for beta in self._beta]))

    @classmethod
    def from_attention(cls, mha: nn.MultiheadAttention, **options: Unpack[Options]) -> Self:
        """Copy an attention layer; the answers are the same, but batch first whatever its `batch_first`.

        One that is not batch first is copied with a warning: in its place, this would take its batch for its rows.

        Args:
            mha: what to copy.
            options: what is to be different, such as alpha=1.5.

        Returns:
            A layer with the same projections, dropout and mode; what is frozen in the one is in the other.

        Raises:
            UsageError: it adds keys of its own (`add_bias_kv`, `add_zero_attn`), or an option that is not free.
        """
        expect(isinstance(mha, nn.MultiheadAttention), "mha", "a torch.nn.MultiheadAttention", type(mha).__name__)
        own = mha.bias_k is not None or mha.add_zero_attn
        expect(not own, "mha", "an attention without keys of its own", "add_bias_kv or add_zero_attn")
        for name in ("embed_dim", "num_heads", "kdim", "vdim", "bias"):
            expect(name not in options, name, "what the projections have that are copied", options.get(name))
        if not mha.batch_first:
            warnings.warn(
                "from_attention: the copy takes [batch, rows, entries], and the original did not", stacklevel=2
            )
        copied: Options = {
            "kdim": mha.kdim,
            "vdim": mha.vdim,
            "dropout": mha.dropout,
            "bias": mha.in_proj_bias is not None,
            "device": mha.out_proj.weight.device,
            "dtype": mha.out_proj.weight.dtype,
        }
        layer = cls(mha.embed_dim, mha.num_heads, **(copied | options))
        layer.load_state_dict(layer.state_dict() | mha.state_dict())
        mine = dict(layer.named_parameters())
        for name, parameter in mha.named_parameters():
            mine[name].requires_grad_(parameter.requires_grad)
        return layer.train(mha.training)

    @property
    def alpha(self) -> float | Tensor:
        """α: a number, or where the heads differ or learn, numbers [H, 1, 1]."""
        excess = self.learned_excess
        learned = None if excess is None else 1 + _NotBelow.apply(excess)  # type: ignore[no-untyped-call]
        return self._rate(self._alpha, learned)

    @property
    def beta(self) -> float | Tensor:
        """β: a number, or where the heads differ or learn, numbers [H, 1, 1]."""
        return self._rate(self._beta, None if self.learned_log_beta is None else self.learned_log_beta.exp())

    def feature_map_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of Φ, which Stage I learns.

        Yields:
            W [H, D, d]; nothing where there is no map.
        """
        if self.feature_map is not None:
            yield self.feature_map

    def features(self, keys: Tensor) -> Tensor:
        """Φ of keys, as the layer compares them with queries.

        Args:
            keys: [..., S, kdim].

        Returns:
            Unit features [..., H, S, D]; without a map what the heads see of the keys [..., H, S, d].
        """
        return attention.features(self._heads_of(self._projected(keys, 1)), self.feature_map)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Output:
        """Retrieve.

        Args:
            query: [B, L, E], or [L, E] without a batch.
            key: [B, S, kdim], or a batch of one for all queries; None: the queries.
            value: [B, S, vdim], as `key`; None: the keys.
            key_padding_mask: [B, S] or [1, S]; True where a key is none, or numbers that are added to the scores.
            attn_mask: [L, S] or [B·H, L, S]; True where a query does not see a key, or numbers that are added.
            need_weights: return the weights, which the fused attention does not hold.
            average_attn_weights: over the heads.
            is_causal: queries see keys up to their own place; a hint where there is an `attn_mask`.

        Returns:
            Answers [B, L, E], and weights [B, L, S] (of each head: [B, H, L, S]) or None. A query that sees no key
            has weights of zero, and its answer is the bias of `out_proj`.

        Raises:
            InvalidDataError: shapes that do not fit.
        """
        key = query if key is None else key
        value = key if value is None else value
        for name, each in (("query", query), ("key", key), ("value", value)):
            if not isinstance(each, Tensor):
                raise InvalidDataError(name, "a tensor", type(each).__name__)
        if query.dim() == 2:
            padding = None if key_padding_mask is None else key_padding_mask[None]
            output, P = self.forward(
                *_batch_of_one(query, key, value), padding, attn_mask, need_weights, average_attn_weights, is_causal
            )
            return output[0], None if P is None else P[0]
        self._check(query, key, value)
        Q, K, V = (self._heads_of(U) for U in self._in_projected(query, key, value))  # [B, H, ·, d]
        shape = (query.shape[0], self.num_heads, query.shape[1], key.shape[1])
        mask = mask_of(key_padding_mask, attn_mask, shape, Q, is_causal=is_causal)
        left_out = self.dropout if self.training else 0.0
        heads = attention.Heads(self.alpha, self.beta, self.feature_map, self.steps, left_out)
        mixed, P = attention.attend(Q, K, V, heads, mask, need_weights=need_weights)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))  # [B, L, E]
        return output, P.mean(1) if P is not None and average_attn_weights else P

    def extra_repr(self) -> str:
        """What the layer is, for print.

        Returns:
            One line.
        """
        alpha, beta = _shown(self.alpha), _shown(self.beta)
        alpha += "" if self.learned_excess is None else " (learned)"
        beta += "" if self.learned_log_beta is None else " (learned)"
        sizes = f"{self.embed_dim}, num_heads={self.num_heads}, kdim={self.kdim}, vdim={self.vdim}"
        how = f"feature_dim={self.feature_dim}, alpha={alpha}, beta={beta}, steps={self.steps}, dropout={self.dropout}"
        return f"{sizes}, {how}"

    def _rate(self, fixed: list[float], learned: Tensor | None) -> float | Tensor:
        """α or β as the equations take it.

        Returns:
            A number, or [H, 1, 1].
        """
        if learned is None and len(set(fixed)) == 1:
            return fixed[0]
        device = self.out_proj.weight.device
        rates = torch.tensor(fixed, dtype=torch.float64, device=device) if learned is None else learned
        return rates[:, None, None]

    def _in_projected(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        """All three, in one product where they are one.

        Returns:
            [B, ·, E] each.
        """
        if self.in_proj_weight is not None and query is key and key is value:
            return linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return [self._projected(U, which) for which, U in enumerate((query, key, value))]

    def _projected(self, U: Tensor, which: int) -> Tensor:
        """What the heads see of queries (0), keys (1) or values (2).

        Returns:
            [B, N, E].
        """
        apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weight = apart[which] if self.in_proj_weight is None else self.in_proj_weight.chunk(3)[which]
        assert weight is not None  # the weights are packed, or there are three
        return linear(U, weight, None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[which])

    def _heads_of(self, U: Tensor) -> Tensor:
        """Give each head its part.

        Returns:
            [..., H, N, d].
        """
        return U.view(*U.shape[:-1], self.num_heads, self.head_dim).transpose(-3, -2)

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        if query.is_nested:
            advice = "a nested one (of torch's encoder: enable_nested_tensor=False avoids it)"
            raise InvalidDataError("query", "a padded tensor", advice)
        widths = (self.embed_dim, self.kdim, self.vdim)
        for name, U, width in zip(("query", "key", "value"), (query, key, value), widths, strict=True):
            if U.dim() != 3 or U.shape[2] != width:
                raise InvalidDataError(name, f"shape [batch, rows, {width}]", list(U.shape))
            if U.shape[0] != query.shape[0] and U.shape[0] != 1:  # sizes may be symbols: no sets, no len
                raise InvalidDataError(name, f"a batch of {query.shape[0]}, or of one", list(U.shape))
        if key.shape[1] != value.shape[1]:
            raise InvalidDataError("value", f"as many rows as the keys have, {key.shape[1]}", list(value.shape))


class _NotBelow(torch.autograd.Function):
    """max(x, 0), whose gradient leads back from below and never there: a parameter neither dies nor runs away."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp_min(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, G, G.clamp_max(0))  # a step goes against the gradient


def _shown(rate: float | Tensor) -> str:
    return (
        f"[{', '.join(f'{each:.4g}' for each in rate.flatten().tolist())}]"
        if isinstance(rate, Tensor)
        else f"{rate:.4g}"
    )


def _batch_of_one(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as a batch; what was the same tensor stays the same.

    Returns:
        [1, ·, ·] each.
    """
    q = query[None]
    k = q if key is query else key if key.dim() == 3 else key[None]
    return q, k, k if value is key else value if value.dim() == 3 else value[None]
