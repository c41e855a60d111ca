"""Convert FSDP2's sharded tensors to full tensors and back, so that a checkpoint does not depend on the number of processes.

Every process must call the functions that gather, in the same order: they communicate. Only the first process keeps what
it gathers, on the CPU.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from xft_core.models.config import decoder_layers
from xft_core.models.discovery import family_of
from xft_core.runtime.group import is_first
from xft_core.training.sharded_adafactor import placements


def shard(model: PreTrainedModel) -> None:
    """Shard ``model`` over the processes, each part on its process's device: FSDP2, decoder layer by decoder layer.

    Gradients are averaged over the processes in fp32. accelerate would do this too, but not on a CPU, where the tests run.
    """
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in decoder_layers(model, family_of(model.config)):
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, tied ones only under their first name. Empty except in the first process."""
    duplicates = _tied_names(model)
    gathered = ((name, whole(tensor)) for name, tensor in model.state_dict().items() if name not in duplicates)
    return {name: tensor for name, tensor in gathered if tensor is not None}


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``optimizer.state_dict()`` as a single process would have it. Empty except in the first process."""
    state = optimizer.state_dict()
    gathered = {
        number: {name: whole(value) if isinstance(value, torch.Tensor) else value for name, value in of_parameter.items()}
        for number, of_parameter in state["state"].items()}
    return {"state": gathered, "param_groups": state["param_groups"]} if is_first() else {}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the result of ``whole_optimizer_state`` into an optimizer whose parameters may be sharded. Its own load_state_dict
    alone would round statistics to the dtype of bf16 weights."""
    optimizer.load_state_dict({"state": {}, "param_groups": state["param_groups"]})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, of_parameter in state["state"].items():
        parameter = parameters[number]
        optimizer.state[parameter] = {name: _placed(value, parameter, name) for name, value in of_parameter.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor | None:
    """A full tensor, of which each process may have a part: on the CPU in the first process, None in the others."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu() if is_first() else None


def _placed(value: Any, parameter: torch.Tensor, name: str) -> Any:
    """The statistic ``name`` on the parameter's device, reduced to this process's part."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, placements(parameter, name), src_data_rank=None)


def _tied_names(model: nn.Module) -> set[str]:
    """Names under which a parameter occurs a second time."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if first.setdefault(id(parameter), name) != name}
