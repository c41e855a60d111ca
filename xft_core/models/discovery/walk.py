"""Propose rows of the family table from a model's modules: the FFN of every decoder layer, by its shapes.

A module with a linear layer of D to F (two of them, or one of D to 2F, when gated), one of F to D and an activation looks
like an FFN. Attention has no activation between its linear layers, and other shapes. This module does not see what a module
computes: ``proof.py`` decides. Letters: D hidden size, F FFN size.
"""

from collections.abc import Iterator
from itertools import permutations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xft_core.families import Family


class CannotUpcycle(Exception):
    """The reason why a model's FFNs cannot become mixtures, as the end of a sentence."""


def propose(model: PreTrainedModel) -> list[Family]:
    """Every row that the modules allow, most likely first. Rows differ in the activation and in which layer is the gate.
    ``model`` may be without memory.

    Raises CannotUpcycle if there is no row.
    """
    layers_name, layers = _decoder_layers(model)
    hidden_size = model.get_input_embeddings().embedding_dim
    hidden_size = int(getattr(model.config, "hidden_size", None) or hidden_size)
    for number, layer in enumerate(layers):
        _check_dense(f"{layers_name}.{number}", layer, hidden_size)
    found = [(name, module) for name, module in layers[0].named_modules() if _shapes(module, hidden_size)]
    if not found:
        raise CannotUpcycle(f"no FFN was found in its {layers_name}: no module has linear layers of {hidden_size:,} (hidden "
                            "size) to some size and back and an activation without weights")
    if len(found) > 1:
        names = ", ".join(repr(name) for name, _ in found)
        raise CannotUpcycle(f"its {layers_name} have several FFNs each ({names})")
    mlp, ffn = found[0]
    _check_alike(layers_name, layers, mlp)
    up, down = _shapes(ffn, hidden_size) or ([], "")
    gated = len(up) == 2 or _size(getattr(ffn, up[0]))[1] == 2 * _size(getattr(ffn, down))[0]
    linear = [getattr(ffn, name) for name in (*up, down)]
    transposed = isinstance(linear[0], Conv1D)
    _check_kinds(f"{layers_name}.0.{mlp}", linear, gated, inline=not mlp)
    activations = list(_activations(ffn))
    if not activations:
        raise CannotUpcycle(f"{layers_name}.0.{mlp} has the linear layers of an FFN, but no activation as an attribute")
    orders = list(permutations(up))
    orders.sort(key=lambda order: "gate" not in order[0])
    return [
        Family(up=order, down=down, gated=gated, activation=activation, layers=layers_name, mlp=mlp, transposed=transposed,
               dropout="")
        for activation in activations for order in orders]


def _decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    number = int(model.config.num_hidden_layers)
    found = [
        (name, module) for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
        and not any(isinstance(child, nn.Linear | nn.LayerNorm | nn.Embedding) for child in module)]
    outer = [(name, module) for name, module in found if not any(name.startswith(f"{other}.") for other, _ in found)]
    if len(outer) != 1:
        raise CannotUpcycle(
            f"its decoder layers were not found: {len(outer)} lists of modules have the {number} entries of num_hidden_layers")
    return outer[0]


def _check_dense(layer_name: str, layer: nn.Module, hidden_size: int) -> None:
    """Raise CannotUpcycle if the layer has experts: stacked ones, or a list of modules with linear layers."""
    for name, module in layer.named_modules():
        stacked = any(
            parameter.dim() == 3 and hidden_size in parameter.shape[1:] and len(parameter) > 1
            for parameter in module.parameters(recurse=False))
        is_convolution = isinstance(module, nn.Conv1d | nn.Conv2d)
        listed = isinstance(module, nn.ModuleList) and sum(
            any(_is_linear(inner) for inner in child.modules()) for child in module) > 1
        if listed or (stacked and not is_convolution):
            raise CannotUpcycle(f"it is already a mixture of experts ({layer_name}.{name} holds several)")


def _check_alike(layers_name: str, layers: nn.ModuleList, mlp: str) -> None:
    """Raise CannotUpcycle unless the FFN of every layer has the names and shapes of the first layer's FFN."""
    def description(layer: nn.Module) -> dict[str, list[int]]:
        try:
            ffn = layer.get_submodule(mlp)
        except AttributeError:
            return {}
        return {name: list(parameter.shape) for name, parameter in ffn.named_parameters()}

    first = description(layers[0])
    for number, layer in enumerate(layers):
        if description(layer) != first:
            raise CannotUpcycle(
                f"its layers are not alike: the FFN of {layers_name}.{number} differs from that of {layers_name}.0")


def _check_kinds(name: str, linear: list[nn.Module], gated: bool, inline: bool) -> None:
    if len({isinstance(layer, Conv1D) for layer in linear}) > 1 or (gated and isinstance(linear[0], Conv1D)):
        raise CannotUpcycle(f"the FFN {name} is gated with Conv1D layers, or mixes them with linear ones")
    if len({layer.bias is None for layer in linear}) > 1:
        raise CannotUpcycle(f"in the FFN {name} some linear layers have a bias and others have none")
    if gated and inline:
        raise CannotUpcycle(f"the FFN in {name} is gated and has no module of its own")


def _shapes(module: nn.Module, hidden_size: int) -> tuple[list[str], str] | None:
    """Names of the layers into the FFN and of the one out of it, if ``module`` looks like an FFN; else None.

    Of the linear layers directly in the module, one leads back from F to D. If the FFN has no module of its own, the module may
    contain other layers (D to D).
    """
    linear = {name: _size(child) for name, child in module.named_children() if _is_linear(child)}
    linear = {name: size for name, size in linear.items() if hidden_size in size}
    if len(linear) > 3:
        return None
    for down, (ffn_size, out) in linear.items():
        up = [name for name in linear if name != down]
        sizes = [linear[name] for name in up]
        if out != hidden_size or any(size[0] != hidden_size for size in sizes) or not list(_activations(module)):
            continue
        outs = [size[1] for size in sizes]
        if outs in ([ffn_size], [2 * ffn_size], [ffn_size, ffn_size]) and up:
            return up, down
    return None


def _activations(ffn: nn.Module) -> Iterator[str]:
    """Names of attributes that may be the activation: modules without parameters, and functions."""
    for name, child in ffn.named_children():
        kind = type(child).__name__
        plain = not any(True for _ in child.parameters()) and not any(True for _ in child.children())
        if plain and not isinstance(child, nn.Dropout | nn.Identity | nn.ModuleList) and "Norm" not in kind:
            yield name
    for name, value in vars(ffn).items():
        if not name.startswith("_") and callable(value) and not isinstance(value, type | nn.Module):
            yield name


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _size(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    first, second = layer.weight.shape
    return (first, second) if isinstance(layer, Conv1D) else (second, first)
