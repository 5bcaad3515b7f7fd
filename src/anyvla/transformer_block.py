"""The transformer block of the `gpt` fuser, the `tokens` decoder and the network of `flow` and `diffusion`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Float[Tensor, "M h _ d"], Float[Tensor, "M h _ d"]]  # of one layer


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, as in GPT-2 or, with `modulated`, as in a DiT (adaLN-Zero, arXiv 2212.09748).

    A GPT block is causal and has norms with weights. In a DiT block all positions see each other; a condition shifts,
    scales and gates both parts, and the gates start at zero.
    """

    def __init__(self, width: int, heads: int, *, modulated: bool = False, residual_std: float | None = None) -> None:
        """`residual_std`: standard deviation of the two layers that add to the residual stream; None: PyTorch's."""
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width) if modulated else None
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=not modulated)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=not modulated)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        # The order decides which random numbers each layer gets: a seed must keep giving the same weights.
        if residual_std is None:
            up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        else:
            down, up = nn.Linear(4 * width, width), nn.Linear(width, 4 * width)
            for last in (self.out, down):
                nn.init.normal_(last.weight, std=residual_std)
                nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(up, nn.GELU(approximate="tanh" if modulated else "none"), down)
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "M L D"], past: KeysValues | None = None, condition: Float[Tensor, "M D"] | None = None
    ) -> tuple[Float[Tensor, "M L D"], KeysValues]:
        """Return the hidden states, and the keys and values including `past`. With a `past`, x is one position."""
        if self.modulation is None:
            attended, cache = self._attend(self.norm_attention(x), past)
            x = x + attended
            return x + self.mlp(self.norm_mlp(x)), cache
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(6, dim=-1)
        attended, cache = self._attend(self.norm_attention(x) * (1 + scale) + shift, past)
        x = x + gate * attended
        return x + mlp_gate * self.mlp(self.norm_mlp(x) * (1 + mlp_scale) + mlp_shift), cache

    def _attend(self, x: Float[Tensor, "M L D"], past: KeysValues | None) -> tuple[Float[Tensor, "M L D"], KeysValues]:
        m, length, d = x.shape
        q, k, v = self.qkv(x).view(m, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        causal = self.modulation is None and past is None
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (M, heads, L, d)
        return self.out(attended.transpose(1, 2).reshape(m, length, d)), (k, v)
