"""LoRA (arXiv 2106.09685) through PEFT, put into a model before it is trained and summed into its weights afterwards.

    W x + (alpha / r) B A x        A: r,I random from the seed; B: O,r zero, so that nothing changes at the start

In a dense model, every linear layer of the decoder layers gets an adapter. In a Mixture-of-Experts, only those outside the
experts do (attention); experts and routers are trained directly, because they are the point of the method. Everything else is
fixed.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xft_core.models.discovery import family_of
from xft_core.models.upcycled import moe_blocks
from xft_core.recipe.sections import SftConfig

ADAPTER = "default"  # PEFT's name of the only adapter


def add_adapters(model: PreTrainedModel, sft: SftConfig, seed: int) -> None:
    """Put adapters into ``model`` as the section sft says, and make only them, experts and routers trainable. Without
    sft.adapter, nothing changes."""
    if sft.adapter == "none":
        return
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(_config(model, sft), model, adapter_name=ADAPTER)
    for block in moe_blocks(model):
        block.requires_grad_(True)


def merge_adapters(model: PreTrainedModel) -> None:
    """Add every adapter to its weights and remove it: ``model`` has its own class again, and all its parameters can be
    trained. A model without adapters is unchanged."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in [*model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            module.merge()  # type: ignore[operator]
            model.set_submodule(name, module.get_base_layer())
    for left in ("peft_config", "_hf_peft_config_loaded"):
        if left in model.__dict__:
            delattr(model, left)
    model.requires_grad_(True)


def save_adapters(model: PreTrainedModel, sft: SftConfig, directory: Path) -> None:
    """Write the adapters, before they are merged, as PEFT loads them onto the model that was tuned:
    ``PeftModel.from_pretrained(base, directory)``."""
    config = _config(model, sft)
    config.inference_mode = True
    config.target_modules = sorted({name.rpartition(".lora_")[0] for name, _ in _adapter_weights(model)})
    config.save_pretrained(str(directory))
    tensors = {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.detach().cpu().contiguous()
               for name, tensor in _adapter_weights(model)}
    save_file(tensors, directory / "adapter_model.safetensors")


def _adapter_weights(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in model.named_parameters() if ".lora_" in name]


def _config(model: PreTrainedModel, sft: SftConfig) -> Any:
    from peft import LoraConfig

    family = family_of(model.config)
    of_experts = {id(module) for block in moe_blocks(model) for module in block.modules()}
    targets = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(f"{family.layers}.") and id(module) not in of_experts]
    return LoraConfig(
        r=sft.adapter_rank, lora_alpha=sft.adapter_alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
        target_modules=targets, fan_in_fan_out=family.transposed)
