"""The network that reads a mask off its support: a label encoder, matching on four levels, and a decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 4


class Matching(nn.Module):
    """Attention of the asked pictures' tokens over those of all that are shown.

    O = LN(softmax(Q Kᵀ / √d) V), O + GELU(O W)
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.behind = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, asked: Tensor, shown: Tensor, labels: Tensor) -> Tensor:
        """Returns [n, tokens, dim] of asked [n, tokens, dim], and shown and labels [k, tokens, dim]."""
        flat = [self.k(self.before(shown)).flatten(0, 1), self.v(labels).flatten(0, 1)]  # all shots are one set
        q = self.q(self.before(asked)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (each.unflatten(-1, (self.heads, -1)).transpose(0, 1).expand(len(asked), -1, -1, -1) for each in flat)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = self.behind(mixed)
        return out + functional.gelu(self.o(out))


class LabelEncoder(nn.Module):
    """Tokens of a mask on four levels: patches of it, then a transformer block a level."""

    def __init__(self, side: int, grid: int, dim: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, side // grid, side // grid)
        self.places = nn.Parameter(0.02 * torch.randn(grid * grid, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(LEVELS)
        )

    def forward(self, masks: Tensor) -> list[Tensor]:
        """Returns four [k, tokens, dim] of masks [k, side, side]."""
        state = self.patches(2 * masks[:, None] - 1).flatten(2).mT + self.places
        found = []
        for block in self.blocks:
            state = block(state)
            found.append(state)
        return found


class Residual(nn.Module):
    """Two convolutions of 3 x 3 beside the identity: x + C₂ relu(C₁ relu(x))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [n, dim, h, w]."""
        return x + self.second(functional.relu(self.first(functional.relu(x))))


class Decoder(nn.Module):
    """From the deepest level up, each added to what is below it; then doubled until it has the mask's size."""

    def __init__(self, side: int, grid: int, dim: int) -> None:
        super().__init__()
        self.side, self.grid = side, grid
        self.inlets = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(LEVELS))
        self.fused = nn.ModuleList(Residual(dim) for _ in range(LEVELS))
        self.wider = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range((side // grid).bit_length() - 1))
        self.head = nn.Conv2d(dim, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Returns logits [n, side, side] of four [n, tokens, dim]."""
        state = torch.zeros_like(levels[0].mT).unflatten(-1, (self.grid, self.grid))
        for level in reversed(range(LEVELS)):
            held = levels[level].mT.unflatten(-1, (self.grid, self.grid))
            state = self.fused[level](state + self.inlets[level](held))
        for wider in self.wider:
            state = functional.relu(wider(functional.interpolate(state, scale_factor=2, mode="bilinear")))
        return functional.interpolate(self.head(state), size=(self.side, self.side), mode="bilinear")[:, 0]


class Matcher(nn.Module):
    """Logits of the asked pictures' masks from levels of states, and the shown masks."""

    def __init__(self, widths: tuple[int, ...], side: int, grid: int, dim: int, heads: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.inlets = nn.ModuleList(nn.Sequential(nn.LayerNorm(d), nn.Linear(d, dim, bias=False)) for d in widths)
        self.alpha = nn.Parameter(torch.zeros(LEVELS, LEVELS))
        self.norm = nn.LayerNorm(dim)
        self.labels = LabelEncoder(side, grid, dim, heads)
        self.matching = nn.ModuleList(Matching(dim, heads) for _ in range(LEVELS))
        self.decoder = Decoder(side, grid, dim)

    def mixed(self, levels: list[Tensor]) -> Tensor:
        """Returns [4, n, tokens, dim]: each level a mean of all, whose weights are trained."""
        held = torch.stack([self.norm(inlet(each)) for inlet, each in zip(self.inlets, levels, strict=True)])
        weights = (self.alpha / self.temperature).softmax(-1)
        return torch.einsum("lm,m...->l...", weights, held)

    def forward(self, asked: list[Tensor], shown: list[Tensor], masks: Tensor) -> Tensor:
        """Returns logits [n, side, side] of asked (four [n, tokens, d_l]), shown (of k) and masks [k, side, side]."""
        queries, keys, values = self.mixed(asked), self.mixed(shown), self.labels(masks)
        found = [match(*each) for match, *each in zip(self.matching, queries, keys, values, strict=True)]
        return self.decoder(found)
