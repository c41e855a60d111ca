"""A generator's input: 14 numbers for each expert of each layer of a mixture, and how experts are related.

They come from one calibration pass of the Mixture-of-Experts (how its router uses the experts), one gradient of the loss at
uniform mixing, and the dot products of the experts' differences, layer by layer. Delta_i = W_i - W_ref, where W_ref is the
shared expert, or the experts' mean without one.

Shape suffixes: L layers, N experts (the shared one first), R routed, P features, T tokens, K experts of a token, B elements.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import Rows
from xft_core.errors import ArtifactError
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.objective import nll
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.router import Routing
from xft_core.training.held_out import TOKENS_PER_BATCH, take_routings
from xft_core.training.response_loss import response_loss

FEATURES_FILE = "features.safetensors"
NAMES = (
    "log_change_gate", "log_change_up", "log_change_down", "cosine_with_mean_change", "cosine_with_tuning",
    "mean_routing_weight", "load", "mean_probability_if_chosen", "entropy_if_chosen", "first_order_gain", "depth", "depth_sine",
    "depth_cosine", "is_shared")
TINY = 1e-12  # a norm below this counts as zero


@dataclass(frozen=True)
class Features:
    """``features_LNP``: as in NAMES; ``within_LNN``: cosine of Delta_i and Delta_j, 0 on the diagonal; ``between_LNN``, one
    layer fewer: P(j is chosen at l + 1 | i is chosen at l) - P(j is chosen at l + 1), over tokens. fp64."""

    features_LNP: torch.Tensor
    within_LNN: torch.Tensor
    between_LNN: torch.Tensor
    shared_expert: bool

    def standardized(self) -> torch.Tensor:
        """features_LNP with mean 0 and standard deviation 1 over all experts of all layers; a feature that does not vary
        is 0."""
        flat = self.features_LNP.flatten(0, 1)
        deviation_P = flat.std(dim=0, correction=0)
        varies_P = deviation_P > TINY
        return torch.where(varies_P, (self.features_LNP - flat.mean(dim=0)) / torch.where(varies_P, deviation_P, 1.0), 0.0)

    def save(self, directory: Path) -> None:
        """Write features.safetensors into ``directory``."""
        save_file({
            "features": self.features_LNP.contiguous(), "within": self.within_LNN.contiguous(),
            "between": self.between_LNN.contiguous(),
            "shared_expert": torch.tensor([self.shared_expert])}, directory / FEATURES_FILE)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The features that ``save`` wrote. Raises ArtifactError if there are none, or if their shapes do not fit."""
        try:
            tensors = load_file(directory / FEATURES_FILE)
            found = cls(tensors["features"], tensors["within"], tensors["between"], bool(tensors["shared_expert"][0]))
            num_layers, num_experts, num_features = found.features_LNP.shape
            fitting = num_features == len(NAMES) and found.within_LNN.shape == (num_layers, num_experts, num_experts)
            if not fitting or found.between_LNN.shape != (max(0, num_layers - 1), num_experts, num_experts):
                raise ValueError("shapes")
        except (OSError, SafetensorError, KeyError, ValueError, IndexError):
            raise ArtifactError(
                f"{str(directory)!r} has no complete {FEATURES_FILE}. Mix with merge.keep_features=true, or with a generator."
            ) from None
        return found


def features_of(mixed: MixedModel, directory: Path, rows: Rows, max_rows: int, uniform_LN: torch.Tensor) -> Features:
    """The features of the experts of the model in ``directory``, from the first ``max_rows`` of ``rows``.

    Args:
        mixed: the mixture in memory, of granularity layer; uniform mixing is left applied to it.
        directory: the Mixture-of-Experts.
        rows: the rows on which it and its uniform mixture are measured.
        max_rows: how many of them.
        uniform_LN: shares of uniform mixing.
    """
    mixture = mixed.mixture
    usage = _Usage(mixture)
    usage.count(directory, rows, max_rows, mixed.model.dtype, mixed.model.device)
    gradient_LN = _gradient(mixed, rows, max_rows, uniform_LN)
    nodes, within = [], []
    for layer in range(mixture.num_layers):
        geometry = _Geometry(mixture, layer)
        depth = layer / max(1, mixture.num_layers - 1)
        size_N = geometry.change_sizes()
        mean_gradient = gradient_LN[layer].mean() if not mixture.upcycle.shared_expert else gradient_LN[layer, 0]
        gain_N = torch.where(size_N > TINY, -(gradient_LN[layer] - mean_gradient) / size_N.clamp(min=TINY), 0.0)
        same_N = torch.ones(mixture.num_experts, dtype=torch.float64)
        is_shared_N = torch.zeros(mixture.num_experts, dtype=torch.float64)
        is_shared_N[0] = float(mixture.upcycle.shared_expert)
        nodes.append(torch.stack([
            *geometry.log_changes(), geometry.cosine_with_mean(), geometry.cosine_with_tuning(), *usage.of_layer(layer), gain_N,
            depth * same_N, math.sin(math.pi * depth) * same_N, math.cos(math.pi * depth) * same_N, is_shared_N], dim=1))
        within.append(geometry.cosines())
    return Features(torch.stack(nodes), torch.stack(within), usage.lift(), mixture.upcycle.shared_expert)


class _Geometry:
    """Dot products of one layer's differences: the Gram matrices of its linear layers, read blockwise from disk."""

    def __init__(self, mixture: MixtureReader, layer: int) -> None:
        self.num_experts, self.shared = mixture.num_experts, mixture.upcycle.shared_expert
        self.has_base = mixture.base is not None
        tensors = list(mixture.expert_tensors(layer))
        size = mixture.num_members
        self._gram = torch.zeros(1 + max(tensor.module_number for tensor in tensors), size, size, dtype=torch.float64)
        self.changed_name = [tensor.module_number for tensor in tensors]
        for tensor in tensors:
            self._gram[tensor.module_number] += mixture.gram(tensor)
        reference = torch.zeros(size, dtype=torch.float64)
        reference[:self.num_experts] = 1 / self.num_experts
        if self.shared:
            reference = torch.eye(size, dtype=torch.float64)[0]
        to_change = torch.eye(size, dtype=torch.float64)[:self.num_experts] - reference  # Delta = to_change W
        self._reference = reference
        self._changes = to_change @ self._gram @ to_change.T  # <Delta_i, Delta_j> of every linear layer
        self._to_change = to_change

    def change_sizes(self) -> torch.Tensor:
        """|Delta_i| over the whole FFN, shape N."""
        return self._changes.sum(0).diagonal().clamp(min=0).sqrt()

    def log_changes(self) -> list[torch.Tensor]:
        """log(|Delta_i| / |W_ref|) of gate, up and down, shape N each; of two linear layers, the first counts as both gate and
        up. For an unchanged expert, it is the logarithm of TINY."""
        found = []
        for gram, changes in zip(self._gram, self._changes, strict=True):
            size = (self._reference @ gram @ self._reference).clamp(min=TINY).sqrt()
            found.append((changes.diagonal().clamp(min=0).sqrt() / size).clamp(min=TINY).log())
        return [found[0], found[-2], found[-1]]

    def cosines(self) -> torch.Tensor:
        """cos(Delta_i, Delta_j), N,N, 0 on the diagonal and where one of them is zero."""
        changes, size_N = self._changes.sum(0), self.change_sizes()
        found = _cosine(changes, size_N[:, None] * size_N)
        return found - torch.diag(found.diagonal())

    def cosine_with_mean(self) -> torch.Tensor:
        """cos(Delta_i, mean Delta), N: the mean over routed experts."""
        mean = torch.zeros(self.num_experts, dtype=torch.float64)
        mean[int(self.shared):] = 1 / (self.num_experts - int(self.shared))
        changes = self._changes.sum(0)
        product_N = changes @ mean
        return _cosine(product_N, self.change_sizes() * (mean @ product_N).clamp(min=0).sqrt())

    def cosine_with_tuning(self) -> torch.Tensor:
        """cos(Delta_i, W_ref - W_base), N; 0 without a base model."""
        if not self.has_base:
            return torch.zeros(self.num_experts, dtype=torch.float64)
        base = torch.eye(len(self._reference), dtype=torch.float64)[-1]
        tuning, gram = self._reference - base, self._gram.sum(0)
        return _cosine(
            self._to_change @ gram @ tuning, self.change_sizes() * (tuning @ gram @ tuning).clamp(min=0).sqrt())


class _Usage:
    """How the router uses the experts, over the tokens of a calibration pass."""

    def __init__(self, mixture: MixtureReader) -> None:
        size = (mixture.num_layers, mixture.num_experts)
        self.shared, self._packs = mixture.upcycle.shared_expert, mixture.family.packs
        self._weight_LN, self._chosen_LN, self._probability_LN, self._entropy_LN = (
            torch.zeros(size, dtype=torch.float64) for _ in range(4))
        self._together_LNN = torch.zeros(max(0, size[0] - 1), size[1], size[1], dtype=torch.float64)
        self._tokens = 0

    @torch.no_grad()
    def count(self, directory: Path, rows: Rows, max_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        """One pass of the model in ``directory`` over the rows."""
        model = load_model(directory, dtype).to(device)
        max_length = max(rows.lengths())
        packed = PackedRows(rows, max_length, packing=self._packs)
        sequences = [[index for index in sequence if index < max_rows] for sequence in packed.sequences]
        sequences = [sequence for sequence in sequences if sequence]
        size = max(1, TOKENS_PER_BATCH // max_length)
        for start in range(0, len(sequences), size):
            batch = {name: item.to(device) for name, item in packed.collate(sequences[start:start + size]).items()}
            for block in moe_blocks(model):
                block.keep_routing = True
            response_loss(model, batch)
            mask_T = batch["token_mask"].reshape(-1)
            self._tokens += int(mask_T.sum())
            before_TN = None
            for layer, routing in enumerate(take_routings(model)):
                chosen_TN = self._add(layer, routing, mask_T)
                if before_TN is not None:
                    self._together_LNN[layer - 1] += before_TN.T @ chosen_TN
                before_TN = chosen_TN

    def _add(self, layer: int, routing: Routing, mask_T: torch.Tensor) -> torch.Tensor:
        """Count one layer. Returns which experts each token has, T,N in fp64."""
        index_TK = routing.expert_index_TK[mask_T].cpu()
        weight_TK = routing.weight_TK[mask_T].double().cpu()
        probability_TR = torch.softmax(routing.logits_TR[mask_T].double().cpu(), dim=-1)
        entropy_T = -(probability_TR * probability_TR.clamp(min=TINY).log()).sum(-1)
        num_experts = self._weight_LN.shape[1]
        weight_TN = torch.zeros(len(index_TK), num_experts, dtype=torch.float64).scatter_add_(1, index_TK, weight_TK)
        chosen_TN = (weight_TN > 0).double()
        probability_TN = probability_TR
        if self.shared:
            probability_TN = torch.cat([weight_TN[:, :1], probability_TR], dim=1)
        self._weight_LN[layer] += weight_TN.sum(0)
        self._chosen_LN[layer] += chosen_TN.sum(0)
        self._probability_LN[layer] += (probability_TN * chosen_TN).sum(0)
        self._entropy_LN[layer] += (entropy_T[:, None] * chosen_TN).sum(0)
        return chosen_TN

    def of_layer(self, layer: int) -> list[torch.Tensor]:
        """Mean routing weight, load, mean probability and mean entropy where chosen: shape N each."""
        chosen_N = self._chosen_LN[layer].clamp(min=1)
        return [self._weight_LN[layer] / self._tokens, self._chosen_LN[layer] / self._tokens,
                self._probability_LN[layer] / chosen_N, self._entropy_LN[layer] / chosen_N]

    def lift(self) -> torch.Tensor:
        """P(j at l + 1 | i at l) - P(j at l + 1), 0 if i is never chosen."""
        if not len(self._together_LNN):
            return self._together_LNN
        before_LN1 = self._chosen_LN[:-1, :, None]
        lift_LNN = self._together_LNN / before_LN1.clamp(min=1) - self._chosen_LN[1:, None] / self._tokens
        return torch.where(before_LN1 > 0, lift_LNN, 0.0)


def _gradient(mixed: MixedModel, rows: Rows, max_rows: int, uniform_LN: torch.Tensor) -> torch.Tensor:
    """dL/dc at uniform mixing, L,N, up to a term that is the same for all experts of a layer."""
    mixed.apply(uniform_LN)
    mixed.want_gradient()
    packed = PackedRows(rows, max(rows.lengths()), packing=mixed.mixture.family.packs)
    chosen = [[index for index in sequence if index < max_rows] for sequence in packed.sequences]
    tokens = 0
    with torch.enable_grad():
        for sequence in filter(None, chosen):
            batch = {name: item.to(mixed.model.device) for name, item in packed.collate([sequence]).items()}
            tokens += int((batch["labels"][:, 1:] != IGNORED).sum())
            nll(mixed.model, batch).backward()
    return mixed.weight_gradient()[:, :mixed.mixture.num_experts] / max(1, tokens)


def _cosine(product: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    return torch.where(sizes > TINY, product / sizes.clamp(min=TINY), 0.0)
