"""Coefficients from a graph whose nodes are the experts of all layers.

    h <- h + MLP([h, sum_j e_ij V h_j / (1 + sum_j |e_ij|)])    two rounds;    alpha = w_out . h

Edges within a layer: cosine of the experts' differences; between neighbouring layers: how much more often a token has both
than by chance. Without edges, every node goes through the MLP by itself. w_out starts at zero: uniform mixing, bit for bit.

Shape suffixes: L layers, N experts, R routed, P features, D width.
"""

import torch
from torch import nn

from xft_core.mixing.generators.features import NAMES, Features

WIDTH, ROUNDS = 16, 2


class GraphGenerator(nn.Module):
    """Computes alpha, L,R in fp64, from features. ``seed``: of the initial weights."""

    kind = "graph"

    def __init__(self, features: Features, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(len(NAMES), WIDTH, dtype=torch.float64)
            self.messages = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64) for _ in range(ROUNDS))
            self.updates = nn.ModuleList(
                nn.Sequential(nn.Linear(2 * WIDTH, WIDTH, dtype=torch.float64), nn.GELU(),
                              nn.Linear(WIDTH, WIDTH, dtype=torch.float64)) for _ in range(ROUNDS))
            self.last = nn.Linear(WIDTH, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.last.weight)
        self.use(features)

    def use(self, features: Features) -> None:
        """Compute alpha from these features from now on."""
        self._phi_LNP, self._first_routed = features.standardized(), int(features.shared_expert)
        self._within_LNN, self._between_LNN = features.within_LNN, features.between_LNN
        total_LN = self._within_LNN.abs().sum(-1)
        total_LN[:-1] += self._between_LNN.abs().sum(2)
        total_LN[1:] += self._between_LNN.abs().sum(1)
        self._scale_LN1 = 1 / (1 + total_LN[..., None])

    def forward(self) -> torch.Tensor:
        h_LND = self.first(self._phi_LNP)
        for message, update in zip(self.messages, self.updates, strict=True):
            sent_LND = message(h_LND)
            heard_LND = self._within_LNN @ sent_LND
            after = self._between_LNN @ sent_LND[1:]
            before = self._between_LNN.transpose(1, 2) @ sent_LND[:-1]
            nothing_1ND = torch.zeros_like(heard_LND[:1])
            heard_LND = heard_LND + torch.cat([after, nothing_1ND]) + torch.cat([nothing_1ND, before])
            h_LND = h_LND + update(torch.cat([h_LND, heard_LND * self._scale_LN1], dim=-1))
        alpha_LN: torch.Tensor = self.last(h_LND).squeeze(-1)
        return alpha_LN[:, self._first_routed:]
