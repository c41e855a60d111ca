"""The proof of a proposed row: a tiny model of the architecture gives the same logits before and after upcycling by that row.

The parts of a row other than names are measured on the same model: whether the FFN drops elements of its output, whether the
logits are the head's output, whether packed examples stay apart, and the names under which transformers stores tensors.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from xft_core.errors import first_line
from xft_core.families import Family
from xft_core.models.discovery.scaled import count, tiny_models
from xft_core.models.discovery.walk import CannotUpcycle, propose
from xft_core.models.packed_attention import NAME as BY_EXAMPLE
from xft_core.moe.placement import place_block
from xft_core.recipe.sections import UpcycleConfig

TOKENS = 12
PACKED_LENGTHS = (70, 80)  # each longer than the smallest block of attention by example
LARGEST_DIFFERENCE = 1e-5  # of the largest logit; some families compute norms and softmax in fp32, whatever the dtype
UPCYCLE = UpcycleConfig(num_experts=4, num_experts_per_tok=3)


def prove(config: PreTrainedConfig, shape: PreTrainedModel, proposed: list[Family]) -> tuple[Family, str]:
    """The proved row of ``proposed``, complete, and a description of the test model for the log.

    Args:
        config: the model's configuration.
        shape: the model of this configuration, without memory.
        proposed: rows to try, in this order.

    Raises CannotUpcycle with the reason if none is proved.
    """
    ffn = shape.get_submodule(proposed[0].mlp_name(0))
    hidden_size, ffn_size = _width(shape), _ffn_size(ffn, proposed[0])
    reason = "no model of this architecture is small enough to be tried"
    with _alone():
        for model in tiny_models(config, count(shape), hidden_size, ffn_size):
            if isinstance(model, Exception):
                reason = f"no tiny model of this architecture can be built to prove the change on ({first_line(model)})"
                continue
            try:
                if {_names(row) for row in propose(model)} != {_names(row) for row in proposed}:
                    reason = "a tiny model of this architecture has other modules than the model itself"
                    continue
                logits = _logits(model)
            except CannotUpcycle as error:
                raise CannotUpcycle(f"{error} (seen on a tiny model of this architecture)") from None
            except Exception as error:
                reason = f"a tiny model of this architecture does not run ({first_line(error)})"
                continue
            if not torch.isfinite(logits).all() or not logits.std() > 0:
                reason = "the logits of a tiny model of this architecture are not numbers, or all equal"
                continue
            family = _proved(model, logits, proposed)
            try:
                _check_causal(model, logits)
                family = _complete(model, family)
            except CannotUpcycle:
                raise
            except Exception as error:
                raise CannotUpcycle(f"a tiny model of this architecture cannot be measured ({first_line(error)})") from None
            return family, f"a random model of {model.config.num_hidden_layers} layers and hidden size {_width(model)}"
    raise CannotUpcycle(reason)


def _proved(model: PreTrainedModel, logits: torch.Tensor, proposed: list[Family]) -> Family:
    """The proposed row for which upcycling is the identity."""
    differences = []
    for row in proposed:
        row = replace(row, adds_residual=_takes_residual(model, row))
        try:
            upcycled = _upcycled(model, row)
            difference = _difference(_logits(upcycled), logits)
        except Exception as error:  # each module has its own objections
            differences.append(f"by {_formula(row)} it does not run: {first_line(error)}")
            continue
        differences.append(f"as {_formula(row)} logits differ by {difference:.1e}")
        if difference <= LARGEST_DIFFERENCE and _blocks_matter(upcycled, row, logits):
            return row
    raise CannotUpcycle(
        f"its FFN {proposed[0].mlp_name(0)} does not compute down(act(up(x))), gated or not ("
        f"{'; '.join(differences)}, relative to the largest)")


def _upcycled(model: PreTrainedModel, family: Family) -> PreTrainedModel:
    """A copy of ``model`` with every FFN a mixture of copies of itself, and a random router."""
    model = copy.deepcopy(model)
    for layer in model.get_submodule(family.layers):
        ffn = layer.get_submodule(family.mlp)
        dense = dict(ffn.named_parameters())
        has_bias = f"{family.down}.bias" in dense
        sources = {name: torch.cat([dense[source] for source in sources])
                   for name, sources in family.expert_sources(has_bias).items()}
        block = place_block(layer, family, UPCYCLE).eval()
        for name, source in sources.items():
            getattr(block.experts, name).data.copy_(source)
    return model


def _blocks_matter(upcycled: PreTrainedModel, family: Family, logits: torch.Tensor) -> bool:
    """Whether the logits come from the experts. Otherwise, the model computes its FFN somewhere else."""
    for number in range(len(upcycled.get_submodule(family.layers))):
        upcycled.get_submodule(family.block_name(number)).experts.down_proj.data.normal_(std=0.5)
    return _difference(_logits(upcycled), logits) > 10 * LARGEST_DIFFERENCE


def _complete(model: PreTrainedModel, family: Family) -> Family:
    """The proved row with all measured properties: dropout, head, packing, stored names."""
    family = replace(family, dropout=_dropout(model, family), renamed=_renamed(model, family), plain_head=_plain_head(model))
    packs = _packs(model)
    by_example = False
    if packs and model.config._attn_implementation == "sdpa":
        try:
            model.set_attn_implementation(BY_EXAMPLE)
            by_example = _packs(model)
        except Exception:  # a model's own attention may know only torch's names
            by_example = False
    return replace(family, packs=packs, attends_by_example=by_example)


def _takes_residual(model: PreTrainedModel, family: Family) -> bool:
    """Whether the FFN's forward takes a second tensor."""
    if not family.mlp:
        return False
    parameters = list(inspect.signature(model.get_submodule(family.mlp_name(0)).forward).parameters.values())
    return len([item for item in parameters if item.default is item.empty and item.kind == item.POSITIONAL_OR_KEYWORD]) == 2


def _dropout(model: PreTrainedModel, family: Family) -> str:
    """The FFN's attribute that makes it drop elements of its output in training: at 0.5, half are 0 and the others double.

    Raises CannotUpcycle if training changes the FFN's output in another way.
    """
    if not family.mlp:
        return ""  # dropout of the layer after the FFN also applies after the mixture
    ffn = copy.deepcopy(model.get_submodule(family.mlp_name(0)))
    x_1TD = torch.randn(1, TOKENS, _width(model), dtype=model.dtype)
    inputs = (x_1TD, torch.zeros_like(x_1TD)) if family.adds_residual else (x_1TD,)
    numbers = {name for name, value in vars(ffn).items() if "drop" in name and isinstance(value, float | int)}
    modules = {name for name, child in ffn.named_children() if isinstance(child, nn.Dropout)}

    def output(chosen: str) -> torch.Tensor:
        for name in numbers:
            setattr(ffn, name, 0.5 if name == chosen else 0.0)
        for name in modules:
            getattr(ffn, name).p = 0.5 if name == chosen else 0.0
        result: torch.Tensor = ffn(*inputs)
        return result

    expected = ffn.eval()(*inputs)
    ffn.train()
    if _difference(output(""), expected) > LARGEST_DIFFERENCE:
        raise CannotUpcycle(f"its FFN {family.mlp_name(0)} has different outputs in training and in evaluation")
    for name in sorted(numbers | modules):
        dropped = output(name)
        if _difference(dropped, expected) <= LARGEST_DIFFERENCE:
            continue  # used elsewhere, or not at all
        left = dropped != 0
        if not left.all() and _difference(dropped[left], 2 * expected[left]) <= LARGEST_DIFFERENCE:
            return name
        raise CannotUpcycle(f"its FFN {family.mlp_name(0)} drops elements ({name}) outside its output")
    return ""


def _plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the head's output, bit for bit."""
    head, given = model.get_output_embeddings(), list[torch.Tensor]()
    if not isinstance(head, nn.Linear):
        raise CannotUpcycle("its head is not a linear layer")
    with _hooked(head, given):
        logits = _logits(model)
    return len(given) == 1 and torch.equal(given[0], logits)


def _packs(model: PreTrainedModel) -> bool:
    """Whether two examples in one sequence, each with positions from 0, have the same logits as each alone."""
    longest = getattr(model.config, "max_position_embeddings", None) or max(PACKED_LENGTHS)
    lengths = [min(length, int(longest)) for length in PACKED_LENGTHS]
    rows = [_tokens(model, length, seed) for seed, length in enumerate(lengths, start=1)]
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    try:
        packed = model(input_ids=torch.cat(rows, dim=1), position_ids=position_ids, use_cache=False).logits
    except Exception:  # more tokens than positions, where position_ids play no part
        return False
    parts = packed.split(lengths, dim=1)
    return all(
        _difference(part, model(input_ids=row, use_cache=False).logits) <= LARGEST_DIFFERENCE
        for part, row in zip(parts, rows, strict=True))


def _check_causal(model: PreTrainedModel, logits: torch.Tensor) -> None:
    changed = _tokens(model, TOKENS, 0)
    changed[:, -1] = (changed[:, -1] + 1) % model.get_input_embeddings().num_embeddings
    found = model(input_ids=changed, position_ids=torch.arange(TOKENS)[None], use_cache=False).logits
    if _difference(found[:, :-1], logits[:, :-1]) > LARGEST_DIFFERENCE:
        raise CannotUpcycle("its attention is not causal: a later token changes the logits of earlier ones")


def _renamed(model: PreTrainedModel, family: Family) -> tuple[tuple[str, str], ...]:
    """Modules whose names differ between files and memory. Raises CannotUpcycle if transformers also joins or splits tensors,
    or if the FFN's names differ."""
    state = model.state_dict()
    in_files = revert_weight_conversion(model, dict(state))
    names = {(tensor.data_ptr(), tuple(tensor.shape)): name for name, tensor in in_files.items()}
    found = []
    for name, tensor in state.items():
        other = names.get((tensor.data_ptr(), tuple(tensor.shape)))
        if other is None or (other != name and name.startswith(family.ffn_prefixes(0))):
            raise CannotUpcycle(f"transformers stores its {name} in another form than in memory")
        if other != name and other not in state:
            found.append((name.rpartition(".")[0], other.rpartition(".")[0]))
    return tuple(dict.fromkeys(found))


def _logits(model: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = model(
        input_ids=_tokens(model, TOKENS, 0), position_ids=torch.arange(TOKENS)[None], use_cache=False).logits
    return logits


def _tokens(model: PreTrainedModel, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.get_input_embeddings().num_embeddings, (1, length), generator=generator)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest expected value; infinite if it is not a number."""
    difference = float((found - expected).abs().max() / expected.abs().max())
    return difference if difference == difference else float("inf")


def _names(row: Family) -> tuple[Any, ...]:
    return row.layers, row.mlp, row.up, row.down, row.activation, row.gated


def _formula(row: Family) -> str:
    if not row.gated:
        return f"{row.down}({row.activation}({row.up[0]}(x)))"
    gate, up = row.up if len(row.up) == 2 else (f"the first half of {row.up[0]}", "the second")
    return f"{row.down}({row.activation}({gate}) * {up})"


def _width(model: PreTrainedModel) -> int:
    """The hidden size of the decoder layers."""
    return int(getattr(model.config, "hidden_size", None) or model.get_input_embeddings().embedding_dim)


def _ffn_size(ffn: nn.Module, family: Family) -> int:
    return int(getattr(ffn, family.down).weight.shape[1 - int(family.transposed)])


@contextmanager
def _hooked(module: nn.Module, given: list[torch.Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _inputs, output: given.append(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _alone() -> Iterator[None]:
    """Run seeded, on the CPU with one thread, without gradients, and restore the caller's random state afterwards."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small work is slower with several, much slower on a busy machine
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(num_threads)
