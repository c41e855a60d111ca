"""Low-rank experts in a mixture, without computing their weights:

    sum_i c_i W_i = (sum_i c_i) W_s + B diag(M^T c) A                 <dL/dW, W_i - W_s> = sum_j M_ij <B_j^T dL/dW, A_j>

A and B hold the low-rank columns of all parts side by side (A with the scale), and M says which ones an expert has: its own and
its group's. Shape suffixes: N experts (the shared one first, if there is one), P parts, J columns, I inputs and O outputs of a
layer.
"""

import torch

from xft_core.models.safetensors_io import CheckpointReader
from xft_core.moe.low_rank import Parts
from xft_core.recipe.sections import UpcycleConfig


class Changes:
    """The change of every expert to one tensor of the shared weights.

    Args:
        reader: the upcycled checkpoint.
        block: name of the layer's MoE block.
        tensor: of the FFN, in the dense model's names: ``up_proj.weight`` or a bias.
        upcycle: how the model was upcycled.
    """

    def __init__(self, reader: CheckpointReader, block: str, tensor: str, upcycle: UpcycleConfig) -> None:
        self._reader, self._experts = reader, f"{block}.experts."
        self._layer, _, kind = tensor.rpartition(".")
        self.is_bias, self._parts = kind == "bias", Parts(upcycle)
        part_NP = self._parts.of_node_EP()[:upcycle.num_routed]
        if upcycle.shared_expert:
            part_NP = torch.cat([torch.zeros_like(part_NP[:1]), part_NP])
        columns_P = [1 if self.is_bias else level.rank for level in self._parts.levels for _ in range(level.count)]
        self._column_NJ = part_NP.double().repeat_interleave(torch.tensor(columns_P), dim=1)

    def a_JI(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A of all parts with their scale; for a bias, a 1 for each."""
        if self.is_bias:
            return torch.ones(self._column_NJ.shape[1], 1, dtype=dtype, device=device)
        return torch.cat([
            self._stored(f"{level.prefix}{self._layer}_a", dtype, device).flatten(0, 1) * level.scale
            for level in self._parts.levels])

    def b_OJ(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """B of all parts; for a bias, each part's change."""
        if self.is_bias:
            return torch.cat([
                self._stored(f"{level.prefix}{self._layer}_bias", dtype, device) for level in self._parts.levels]).t()
        return torch.cat([
            self._stored(f"{level.prefix}{self._layer}_b", dtype, device).transpose(0, 1).flatten(1)
            for level in self._parts.levels], dim=1)

    def column_shares(self, weight_N: torch.Tensor) -> torch.Tensor:
        """The share of each column in the mixture with shares ``weight_N``, fp64, J."""
        return weight_N.double().cpu() @ self._column_NJ

    def mixed(self, weight_N: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """sum_i weight_i (W_i - W_s), O,I (a bias O,1), computed in ``dtype``."""
        share_J = self.column_shares(weight_N).to(device, dtype)
        return (self.b_OJ(dtype, device) * share_J) @ self.a_JI(dtype, device)

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """<dL/dW, W_i - W_s> for every expert, fp64, N, on the gradient's device."""
        wide, device = torch.promote_types(gradient.dtype, torch.float32), gradient.device
        gradient_OI = gradient.to(wide).view(len(gradient), -1)
        product_JI = (self.b_OJ(wide, device).t() @ gradient_OI).mul_(self.a_JI(wide, device))
        return self._column_NJ.to(device) @ product_JI.sum(1, dtype=torch.float64)

    def _stored(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return self._reader.get(self._experts + name).to(device, dtype)
