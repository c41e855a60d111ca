"""The dense model of a mixture, kept in memory while its coefficients are determined, and its projected gradient.

Shape suffixes: L layers, G groups, N experts (shared one first), M members (the experts, then the base model if there is one).
"""

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from xft_core.mixing.delta_scale import is_scaled, outside_gradient, scaled_tensor
from xft_core.mixing.granularity import Granularity
from xft_core.mixing.mixture import ExpertTensor, MixtureReader
from xft_core.models.classes import auto_class
from xft_core.models.config import transformers_config


class MixedModel:
    """The dense model whose FFNs are a mixture of the experts'. Everything else is fixed and comes from the tuned MoE, unless
    ``apply`` gets an ``outside_scale``."""

    def __init__(
        self, mixture: MixtureReader, dtype: torch.dtype, device: torch.device, granularity: Granularity | None = None,
    ) -> None:
        self.mixture, self.granularity = mixture, granularity or Granularity()
        with no_init_weights():
            config = transformers_config(mixture.dense_config)
            self.model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype)
        self.model.tie_weights()
        self.model.requires_grad_(False)
        parameters = dict(self.model.named_parameters())
        self._mixed: list[list[tuple[torch.nn.Parameter, ExpertTensor]]] = [
            [(parameters.pop(tensor.name), tensor) for tensor in mixture.expert_tensors(layer)]
            for layer in range(mixture.num_layers)]
        buffers = {name: item for name, item in self.model.named_buffers() if name in mixture.reader}
        self._outside = {mixture.family.stored_name(name): parameter for name, parameter in parameters.items()}
        self._outside_scale, self._num_members = 1.0, mixture.num_experts
        with torch.no_grad():
            for name, parameter in (parameters | buffers).items():
                parameter.copy_(mixture.reader.get(mixture.family.stored_name(name)))
        self.model.to(device).eval()

    @torch.no_grad()
    def apply(self, weight: torch.Tensor, outside_scale: float = 1.0) -> None:
        """Set every FFN to the mixture of its layer's members, and all else to the tuned model's, scaled towards the base.

        Args:
            weight: shares, rows summing to one: L,N or L,M; with a granularity other than layer, L,G,N or L,G,M.
            outside_scale: gamma of the weights outside the FFNs; values other than 1 need the base model.
        """
        self._num_members = weight.shape[-1]
        for layer, tensors in enumerate(self._mixed):
            for parameter, tensor in tensors:
                shares = self.granularity.shares_of(tensor, weight[layer])
                for rows, block in self.mixture.mixed(tensor, shares, parameter.dtype, parameter.device):
                    parameter[rows].copy_(block)
        if outside_scale == self._outside_scale:
            return
        for name, parameter in self._outside.items():
            if outside_scale == 1 or not is_scaled(parameter):
                parameter.copy_(self.mixture.reader.get(name))
                continue
            for rows, block in scaled_tensor(self.mixture, name, outside_scale):
                parameter[rows].copy_(block)
        self._outside_scale = outside_scale

    def want_gradient(self, outside: bool = False) -> None:
        """Collect dL/dW of the FFNs, and of all other weights if ``outside``, in the next backward passes, from zero."""
        for tensors in self._mixed:
            for parameter, _ in tensors:
                parameter.requires_grad_(True)
                parameter.grad = None
        for parameter in self._outside.values():
            parameter.requires_grad_(outside and is_scaled(parameter))
            parameter.grad = None

    def weight_gradient(self) -> torch.Tensor:
        """dL/dc from the collected dL/dW, fp64, in the shape of the applied shares, up to a term that is equal for all
        members of a group."""
        nothing_M = torch.zeros(self._num_members, dtype=torch.float64)
        nothing = nothing_M if self.granularity.kind == "layer" else nothing_M.repeat(self.granularity.num_groups, 1)
        return torch.stack([
            sum((self.granularity.gradient(self.mixture, tensor, parameter.grad, self._num_members)
                 for parameter, tensor in tensors if parameter.grad is not None), start=nothing)
            for tensors in self._mixed])

    def outside_gradient(self) -> torch.Tensor:
        """dL/dgamma of the weights outside the FFNs, a number in fp64; 0 if none of them collects a gradient."""
        return torch.tensor(sum(
            (outside_gradient(self.mixture, name, parameter.grad)
             for name, parameter in self._outside.items() if parameter.grad is not None), start=0.0), dtype=torch.float64)
