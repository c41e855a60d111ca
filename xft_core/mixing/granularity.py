"""The unit that has its own coefficients: a layer, a tensor of its FFN, a block of its neurons, or every neuron.

    W_g = sum_i c_(l,g,i) W_(i,g)          dL/dc_(l,g,i) = <dL/dW_g, W_(i,g)>

Blocks and columns cut an FFN along its neurons, the same way in every tensor (rows of gate and up, columns of down), so
that no neuron is mixed with two sets of shares. The bias of the down projection belongs to no neuron: it takes the mean of the
layer's groups.

Shape suffixes: L layers, G groups of a layer, M members of a mixture (the experts; the base model, if there is one, last),
F neurons, X rows or columns of a tensor.
"""

from dataclasses import dataclass

import torch

from xft_core.errors import RecipeError
from xft_core.mixing.mixture import ExpertTensor, MixtureReader, NeuronShares
from xft_core.recipe.sections import MergeConfig


@dataclass(frozen=True)
class Granularity:
    """How the shares of a layer, shape M (kind layer) or G,M, go to the tensors of its FFN.

    Args:
        kind: layer, tensor, block or column.
        num_groups: G; 1 for layer.
    """

    kind: str = "layer"
    num_groups: int = 1

    @classmethod
    def of(cls, merge: MergeConfig, mixture: MixtureReader) -> "Granularity":
        """The recipe's granularity for a model. Raises RecipeError if they do not fit each other."""
        if merge.method != "learned":
            return cls()
        tensors = list(mixture.expert_tensors(0))
        neurons = tensors[0].num_neurons
        if conflict := merge.conflict_with(mixture.num_layers, neurons):
            raise RecipeError(f"{conflict}.")
        groups = {
            "layer": 1, "tensor": len(_modules(tensors)), "block": merge.block_count, "column": neurons}[merge.granularity]
        return cls(merge.granularity, groups)

    def repeated(self, weight_LM: torch.Tensor) -> torch.Tensor:
        """The same shares for all groups of a layer: L,M for kind layer, else L,G,M."""
        if self.kind == "layer":
            return weight_LM
        return weight_LM[:, None].repeat(1, self.num_groups, 1)

    def shares_of(self, tensor: ExpertTensor, weight: torch.Tensor) -> torch.Tensor | NeuronShares:
        """The shares that go to one tensor, from its layer's, M or G,M: M of them, or some for each neuron.

        If all are equal, they become the shares of the whole tensor, so that the sum has the same bits.
        """
        if self.kind == "layer":
            return weight
        if self.kind == "tensor":
            return weight[tensor.module_number]
        if bool((weight == weight[0]).all()):
            return weight[0]
        axis = tensor.neuron_axis
        if axis is None:
            return weight.mean(dim=0)
        return NeuronShares(axis, weight[self._group_of_each(tensor.shape[axis], tensor.num_neurons)])

    def gradient(
        self, mixture: MixtureReader, tensor: ExpertTensor, gradient: torch.Tensor, num_members: int,
    ) -> torch.Tensor:
        """dL/dc through one tensor from its dL/dW, fp64, shape M or G,M, up to a term that is the same for all members."""
        if self.kind == "layer":
            return mixture.gradient(tensor, gradient, num_members).cpu()
        found_GM = torch.zeros(self.num_groups, num_members, dtype=torch.float64)
        axis = tensor.neuron_axis
        if self.kind == "tensor":
            found_GM[tensor.module_number] = mixture.gradient(tensor, gradient, num_members).cpu()
        elif axis is None or self.num_groups == 1:  # one block equals a layer, bit for bit
            found_GM += mixture.gradient(tensor, gradient, num_members).cpu() / self.num_groups
        else:
            product_XM = mixture.neuron_gradient(tensor, gradient, axis, num_members).cpu()
            found_GM.index_add_(0, self._group_of_each(tensor.shape[axis], tensor.num_neurons), product_XM)
        return found_GM

    def _group_of_each(self, size: int, num_neurons: int) -> torch.Tensor:
        """The group of every row or column: a fused tensor repeats the neurons' rows for each of its parts."""
        neuron_X = torch.arange(size) % num_neurons
        return neuron_X * self.num_groups // num_neurons


def _modules(tensors: list[ExpertTensor]) -> set[str]:
    return {tensor.name.rpartition(".")[0] for tensor in tensors}
