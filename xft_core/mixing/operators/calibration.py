"""Statistics of every expert on calibration rows, by which RegMean and Fisher merging weight experts.

For token x of a layer, with routing weight w_i, expert i contributes w_i E_i(x). Inputs x, routing weights and dL/dy of a layer
are taken from forward (and backward) passes of the Mixture-of-Experts; the experts' own hidden units and gradients are
computed from these with the expert's tensors under their dense names, so nothing here depends on how a
Mixture-of-Experts stores its experts. As many layers as fit into LAYERS_BYTES are done in one pass over the rows.

Shape suffixes: T tokens, D hidden size, K experts per token, N experts, I inputs of a linear layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from xft_core.data.packing import PackedRows
from xft_core.data.rows import Rows
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.upcycled import moe_blocks
from xft_core.training.held_out import TOKENS_PER_BATCH, check_rows_fit
from xft_core.training.response_loss import response_loss

LAYERS_BYTES = 2**32  # of statistics at once: 4 GiB


@dataclass
class ExpertStatistics:
    """One layer's statistics, by expert. ``gram``: G_i = sum_x w_i x x^T (fp32, N,I,I) of each linear layer by weight name;
    ``fisher``: sum over rows of the squared gradient (fp32, N and the tensor's shape) by tensor; ``weight_N``: the sum of
    routing weights, fp64."""

    weight_N: torch.Tensor
    gram: dict[str, torch.Tensor] = field(default_factory=dict)
    fisher: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    """One layer's data of a batch. ``weight_TN``: routing weight of every expert, 0 where a token was not routed."""

    x_TD: torch.Tensor
    weight_TN: torch.Tensor
    gradient_TD: torch.Tensor | None


class Experts:
    """Any expert's FFN, from its tensors under the dense checkpoint's names, computed as in moe/experts.py.

    ``dense``: a dense model of the family, for the activation, and for the place and dtype of the arithmetic.
    """

    def __init__(self, mixture: MixtureReader, dense: PreTrainedModel) -> None:
        self.mixture, self.family = mixture, mixture.family
        self.activations = [
            getattr(dense.get_submodule(self.family.mlp_name(layer)), self.family.activation)
            for layer in range(mixture.num_layers)]
        self.parameter = next(dense.parameters())

    def tensors(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        """An expert's tensors by name, on the dense model's device and in its dtype."""
        return {
            tensor.name: tensor.of_expert(expert).to(self.parameter.device, self.parameter.dtype)
            for tensor in self.mixture.expert_tensors(layer)}

    def inputs_and_output(
        self, layer: int, tensors: dict[str, torch.Tensor], x_TD: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The input of each linear layer, by the name of its weight, and the output of the FFN."""
        family, mlp = self.family, self.family.mlp_name(layer)

        def linear(name: str, x_TI: torch.Tensor) -> torch.Tensor:
            weight = tensors[f"{mlp}.{name}.weight"]
            return F.linear(x_TI, weight.t() if family.transposed else weight, tensors.get(f"{mlp}.{name}.bias"))

        up = torch.cat([linear(name, x_TD) for name in family.up], dim=-1)
        act = self.activations[layer]
        if family.gated:
            gate, up = up.chunk(2, dim=-1)
            h_TF = act(gate) * up
        else:
            h_TF = act(up)
        inputs = {f"{mlp}.{name}.weight": x_TD for name in family.up} | {f"{mlp}.{family.down}.weight": h_TF}
        return inputs, linear(family.down, h_TF)


def gram_statistics(
    moe: PreTrainedModel, experts: Experts, rows: Rows, layers: range, max_rows: int,
) -> dict[int, ExpertStatistics]:
    """Gram matrices of the inputs of every linear layer of every expert, over ``max_rows`` rows, for some layers."""
    mixture = experts.mixture
    found = {layer: ExpertStatistics(torch.zeros(mixture.num_experts, dtype=torch.float64)) for layer in layers}

    def add(layer: int, seen: _Seen) -> None:
        statistics = found[layer]
        statistics.weight_N += seen.weight_TN.double().sum(0).cpu()
        for expert in range(mixture.num_experts):
            weight_T = seen.weight_TN[:, expert]
            chosen_T = weight_T > 0
            if not bool(chosen_T.any()):
                continue
            inputs, _ = experts.inputs_and_output(layer, experts.tensors(layer, expert), seen.x_TD[chosen_T])
            for name, x_TI in inputs.items():
                gram_NII = statistics.gram.get(name)
                if gram_NII is None:
                    shape = (mixture.num_experts, x_TI.shape[1], x_TI.shape[1])
                    gram_NII = statistics.gram[name] = torch.zeros(shape, dtype=torch.float32, device=x_TI.device)
                gram_NII[expert] += (x_TI.float() * weight_T[chosen_T, None].float()).t() @ x_TI.float()

    with torch.no_grad():
        _pass(moe, rows, layers, max_rows, add, with_gradient=False)
    return found


def fisher_statistics(
    moe: PreTrainedModel, experts: Experts, rows: Rows, layers: range, max_rows: int,
) -> dict[int, ExpertStatistics]:
    """The diagonal of the empirical Fisher information of every expert's tensors: squared gradients of a row's loss, summed
    over ``max_rows`` rows, for some layers."""
    mixture = experts.mixture
    found = {layer: ExpertStatistics(torch.zeros(mixture.num_experts, dtype=torch.float64)) for layer in layers}

    def add(layer: int, seen: _Seen) -> None:
        statistics = found[layer]
        assert seen.gradient_TD is not None
        statistics.weight_N += seen.weight_TN.double().sum(0).cpu()
        for expert in range(mixture.num_experts):
            weight_T = seen.weight_TN[:, expert]
            chosen_T = weight_T > 0
            if not bool(chosen_T.any()):
                continue
            tensors = {name: tensor.detach().requires_grad_() for name, tensor in experts.tensors(layer, expert).items()}
            with torch.enable_grad():
                _, y_TD = experts.inputs_and_output(layer, tensors, seen.x_TD[chosen_T])
            of_y_TD = (seen.gradient_TD[chosen_T] * weight_T[chosen_T, None]).to(y_TD.dtype)
            gradients = torch.autograd.grad(y_TD, list(tensors.values()), of_y_TD)
            for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
                fisher_NX = statistics.fisher.get(name)
                if fisher_NX is None:
                    shape = (mixture.num_experts, *tensor.shape)
                    fisher_NX = statistics.fisher[name] = torch.zeros(shape, device=gradient.device)
                fisher_NX[expert] += gradient.float().square()

    _pass(moe, rows, layers, max_rows, add, with_gradient=True)
    return found


def layer_groups(mixture: MixtureReader, method: str) -> Iterator[range]:
    """The layers in their order, in groups whose statistics fit into LAYERS_BYTES; at least one layer each."""
    inputs = int(not mixture.family.transposed)  # the axis of a weight that multiplies its input
    size = sum(_statistics_elements(method, tensor.shape, inputs) for tensor in mixture.expert_tensors(0))
    size *= 4 * mixture.num_experts
    step = max(1, LAYERS_BYTES // size)
    for start in range(0, mixture.num_layers, step):
        yield range(start, min(start + step, mixture.num_layers))


def _statistics_elements(method: str, shape: list[int], inputs: int) -> int:
    if method == "fisher":
        return torch.Size(shape).numel()
    return shape[inputs] ** 2 if len(shape) == 2 else 0


def _pass(
    moe: PreTrainedModel, rows: Rows, layers: range, max_rows: int, add: Callable[[int, _Seen], None], with_gradient: bool,
) -> None:
    """Run the first ``max_rows`` rows through the model and pass the data of each of ``layers``, without padding, to ``add``.
    With gradients, one row at a time."""
    check_rows_fit(moe, [rows])
    moe.eval()
    moe.requires_grad_(False)
    max_length = max(rows.lengths())
    packed = PackedRows(rows, max_length, packing=not with_gradient)
    chosen = [kept for sequence in packed.sequences if (kept := [index for index in sequence if index < max_rows])]
    size = 1 if with_gradient else max(1, TOKENS_PER_BATCH // max_length)
    blocks = moe_blocks(moe)
    kept_inputs: dict[int, torch.Tensor] = {}
    kept_outputs: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            kept_inputs[layer], kept_outputs[layer] = inputs[0].detach(), output
        return hook

    hooks = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
    embedding = moe.get_input_embeddings()
    if with_gradient:  # the weights need no gradient: the embeddings' output must
        hooks.append(embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_()))
    try:
        for start in range(0, len(chosen), size):
            batch = {name: item.to(moe.device) for name, item in packed.collate(chosen[start:start + size]).items()}
            for layer in layers:
                blocks[layer].keep_routing = True
            gradients: dict[int, torch.Tensor] = {}
            with torch.set_grad_enabled(with_gradient):
                loss = response_loss(moe, batch)
            if with_gradient:
                found = torch.autograd.grad(loss, [kept_outputs[layer] for layer in layers])
                gradients = dict(zip(layers, found, strict=True))
            real_T = batch["token_mask"].reshape(-1)
            for layer in layers:
                x_TD = kept_inputs[layer].reshape(-1, kept_inputs[layer].shape[-1])[real_T]
                gradient_TD = gradients[layer].reshape(-1, x_TD.shape[1])[real_T] if with_gradient else None
                add(layer, _Seen(x_TD, _weights(blocks[layer])[real_T], gradient_TD))
            kept_inputs.clear()
            kept_outputs.clear()
    finally:
        for hook in hooks:
            hook.remove()


def _weights(block: nn.Module) -> torch.Tensor:
    """The routing weight of every expert for every token of the latest forward pass, T,N."""
    routing = block.routing
    assert routing is not None
    block.routing = None
    index_TK, weight_TK = routing.expert_index_TK, routing.weight_TK.detach()
    num_experts = block.router.upcycle.num_experts  # type: ignore[union-attr]
    weight_TN = torch.zeros(len(index_TK), num_experts, dtype=weight_TK.dtype, device=weight_TK.device)
    return weight_TN.scatter_add_(1, index_TK, weight_TK)
