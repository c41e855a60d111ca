"""The parameters of a learned mixture, and the shares they give.

    c_l = (lambda_l, (1 - lambda_l) softmax(alpha_l))                   alpha: free, or the output of a generator
    W_l = W_base + gamma_l (sum_i c_(l,i) W_i - W_base)                  gamma: 1, a number, or learned

Shape suffixes: L layers, R routed experts; an alpha of a granularity other than layer is L,G,R.
"""

import math
from collections.abc import Callable

import torch

from xft_core.mixing.delta_scale import scaled
from xft_core.mixing.granularity import Granularity
from xft_core.mixing.mixture import MixtureReader, mixing_weights
from xft_core.recipe.sections import MergeConfig


class MixingParameters:
    """Everything that learning changes, in fp64 on the CPU, and its meaning.

    Args:
        mixture: the model whose experts are mixed.
        merge: the recipe's section.
        granularity: the unit that has its own coefficients.
        shared_weight_start: initial value of a learned lambda.
        generator: computes alpha, L,R; None for a free alpha, which starts at zero: uniform mixing.
    """

    def __init__(
        self, mixture: MixtureReader, merge: MergeConfig, granularity: Granularity, shared_weight_start: float,
        generator: torch.nn.Module | None = None,
    ) -> None:
        self.merge, self.num_layers, self.has_base = merge, mixture.num_layers, mixture.base is not None
        self._generator = generator
        self._has_shared = mixture.upcycle.shared_expert
        self.num_routed = mixture.num_experts - int(self._has_shared)
        self.tensors: dict[str, torch.Tensor] = {}
        if generator is None:
            alpha_LR = granularity.repeated(torch.zeros(mixture.num_layers, self.num_routed, dtype=torch.float64))
            self.tensors["alpha"] = alpha_LR.requires_grad_(True)
        else:
            self.tensors |= {f"generator.{name}": tensor for name, tensor in generator.named_parameters()}
        if self._has_shared and merge.shared_expert_weight is None:
            logit = math.log(shared_weight_start / (1 - shared_weight_start))
            self.tensors["shared_logit"] = torch.full(
                (mixture.num_layers,), logit, dtype=torch.float64, requires_grad=True)
        if merge.delta_scale is None:
            size = mixture.num_layers if merge.delta_scale_scope == "ffn" else 1
            self.tensors["delta_scale"] = torch.ones(size, dtype=torch.float64, requires_grad=True)

    @property
    def nothing_to_learn(self) -> bool:
        """Whether one routed expert, a fixed lambda and a fixed gamma leave nothing to learn."""
        return self.num_routed == 1 and not {"shared_logit", "delta_scale"} & set(self.tensors)

    def alpha(self) -> torch.Tensor:
        """Logits of the routed experts, L,R or L,G,R."""
        made: Callable[[], torch.Tensor] | None = self._generator
        return self.tensors["alpha"] if made is None else made()

    def shares(self, alpha: torch.Tensor | None = None) -> torch.Tensor:
        """Shares of the experts, L,N or L,G,N, rows summing to one; for this ``alpha``, if it is given."""
        alpha = self.alpha() if alpha is None else alpha
        if not self._has_shared:
            return mixing_weights(alpha, None)
        if "shared_logit" in self.tensors:
            shared_weight_L = torch.sigmoid(self.tensors["shared_logit"])
        else:
            shared_weight_L = torch.full((self.num_layers,), float(self.merge.shared_expert_weight or 0.0), dtype=torch.float64)
        return mixing_weights(alpha, shared_weight_L)

    def delta_scale(self) -> torch.Tensor | None:
        """gamma of every layer, L; None if it is 1 or if there is no base model."""
        if not self.has_base or self.merge.delta_scale == 1:
            return None
        learned = self.tensors.get("delta_scale")
        if learned is None:
            return torch.full((self.num_layers,), float(self.merge.delta_scale or 0.0), dtype=torch.float64)
        return learned.expand(self.num_layers)

    def outside_scale(self) -> torch.Tensor | None:
        """gamma of the weights outside the FFNs, a number; None if it is 1."""
        if not self.has_base or self.merge.delta_scale_scope == "ffn":
            return None
        gamma_L = self.delta_scale()
        return None if gamma_L is None else gamma_L[0]

    def with_base(self, weight: torch.Tensor) -> torch.Tensor:
        """Shares of all members from those of the experts."""
        gamma_L = self.delta_scale()
        return weight if gamma_L is None else scaled(weight, gamma_L)
