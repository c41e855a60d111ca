"""Coefficients from attention over experts: alpha = w_out . x after two pre-norm blocks.

    x = W_in phi
    x <- x + A(norm(x))             over the experts of a layer
    x <- x + A(norm(mean_i x))      over layers
    alpha = w_out . x

An expert of one layer is unrelated to the expert of the same number in the next, so layers attend to each other through the
mean of their experts. Permuting the experts of any layer then only permutes their shares. w_out starts at zero: uniform mixing,
bit for bit.

Shape suffixes: L layers, N experts, R routed, P features, D width.
"""

import torch
from torch import nn

from xft_core.mixing.generators.features import NAMES, Features

WIDTH, HEADS = 16, 2


class AttentionGenerator(nn.Module):
    """Computes alpha, L,R in fp64, from features. ``seed``: of the initial weights."""

    kind = "attention"

    def __init__(self, features: Features, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(len(NAMES), WIDTH, dtype=torch.float64)
            self.experts, self.layers = _SelfAttention(), _SelfAttention()
            self.last = nn.Linear(WIDTH, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.last.weight)
        self.use(features)

    def use(self, features: Features) -> None:
        """Compute alpha from these features from now on."""
        self._phi_LNP, self._first_routed = features.standardized(), int(features.shared_expert)

    def forward(self) -> torch.Tensor:
        x_LND = self.first(self._phi_LNP)
        x_LND = x_LND + self.experts(x_LND)
        x_LND = x_LND + self.layers(x_LND.mean(dim=1)[None])[0][:, None]
        alpha_LN: torch.Tensor = self.last(x_LND).squeeze(-1)
        return alpha_LN[:, self._first_routed:]


class _SelfAttention(nn.Module):
    """Attention of every item to every item of its group, without positions. Dimensions: groups, then items."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, dtype=torch.float64)
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(4))

    def forward(self, x_GID: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x_GID)
        groups, items, _ = x_GID.shape
        query, key, value = (
            part(normed).view(groups, items, HEADS, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
        share = torch.softmax(query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, dim=-1)
        mixed: torch.Tensor = self.output((share @ value).transpose(1, 2).reshape(groups, items, WIDTH))
        return mixed
