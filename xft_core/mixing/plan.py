"""A plan of which tensors of a Mixture-of-Experts make which tensors of a dense model, from names and shapes alone.

    1. Tensors whose names have an expert's index, or whose leading dimension is the number of experts, are experts.
    2. A tensor of the same role and shape in a neighbouring module with "shared" in its name is their shared expert's.
    3. Routers and gates of shared experts are left out. Everything outside these modules is copied.

A plan is data: names are patterns, in which {layer} and {expert} stand for numbers. A tensor without a place in it is an error.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field

from xft_core.errors import CheckpointError
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.store.results.base import Result, ResultFile

# The role of an FFN's linear layer, by its name (also for layers that are stacked over experts).
ROLES = {
    "gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "c_fc": "up", "dense_h_to_4h": "up",
    "down_proj": "down", "w2": "down", "c_proj": "down", "dense_4h_to_h": "down", "output_linear": "down",
    "fc1": "up", "fc2": "down", "gate_up_proj": "gate_up", "input_linear": "gate_up"}
LEFT_OUT = frozenset({"gate", "router", "shared_expert_gate"})  # modules next to experts that have no place in a dense model
SHOWN_NAMES = 8  # in a message


class ExpertGroup(Result):
    """One dense tensor and its sources."""

    target: str = Field(description="Name in the dense model, with {layer} [text]")
    source: str = Field(description=(
        "The experts' tensors, with {layer} and {expert}; without {expert}, one tensor, first dimension the experts [text]"))
    shared: str | None = Field(None, description="The shared expert's tensor, with {layer} [text]")
    part: int = Field(0, description="Index of its part of the expert's rows, from 0 [count]")
    parts: int = Field(1, description="Number of equal parts of these rows: 2 for gate and up in one [count]")
    shared_parts: int = Field(1, description=(
        "Number of equal parts of the shared expert's rows, of which the one with the same index is taken [count]"))
    transpose: bool = Field(False, description="Whether rows and columns are exchanged in the dense model [yes or no]")
    scale: float = Field(1.0, description=(
        "Factor of the mean: the sum of the experts' weights for a token, in the last layer of an FFN [no unit]"))


class MixturePlan(ResultFile):
    """merge_plan.json: how a Mixture-of-Experts becomes a dense model."""

    file_name: ClassVar[str] = "merge_plan.json"
    num_experts: int = Field(description="Experts, not counting a shared one [count]")
    num_layers: int = Field(description="Layers [count]")
    dense_config: dict[str, Any] = Field(description="config.json of the dense model [no unit]")
    groups: list[ExpertGroup] = Field(description="Tensors made from experts")
    copied: list[str] = Field(description="Tensors that are copied, with {layer} [text]")
    left_out: list[str] = Field([], description="Tensors that have no place in a dense model, with {layer} [text]")
    warnings: list[str] = Field([], description="Parts that are not exact even for equal experts [text]")


def auto_plan(
    reader: CheckpointReader, dense_config: dict[str, Any], targets: dict[str, list[int]], num_experts: int,
    scale: float = 1.0, warnings: list[str] | None = None,
) -> MixturePlan:
    """The plan that follows from a checkpoint's own names and shapes.

    Args:
        reader: the Mixture-of-Experts.
        dense_config: config.json of the dense model.
        targets: names and shapes of the dense model's tensors.
        num_experts: routed experts.
        scale: sum of the weights of all experts for a token.

    Raises CheckpointError if there are no experts, and for tensors in their modules that have no place in the plan.
    """
    names = reader.names()
    experts = {name: _split(name, reader, num_experts) for name in names}
    modules = {found[0] for found in experts.values() if found}
    if not modules:
        raise CheckpointError(f"{str(reader.directory)!r} has no tensors of {num_experts} experts: there is nothing to merge.")
    wanted: dict[str, dict[tuple[str, str], str]] = {}  # by layer prefix: the dense FFN's tensors by role and kind
    for target in targets:
        if target not in reader and (place := _role(target)):
            wanted.setdefault(_layer_prefix(target), {})[place] = target
    groups: dict[str, ExpertGroup] = {}
    used: set[str] = set()
    left_out: set[str] = set()
    missing: list[str] = []
    for module in sorted(modules):
        inside = [name for name in names if name.startswith((f"{module}.", *_shared_modules(module, names)))]
        own = {name: found for name in inside if (found := experts[name]) and found[0] == module}
        shared = {place: name for name in inside
                  if name not in own and (place := _role(name)) and _is_shared(name, module)}
        for (role, kind), target in wanted.get(_layer_prefix(f"{module}."), {}).items():
            try:
                group = _group(reader, role, kind, target, targets[target], own, shared, num_experts)
            except LookupError:
                missing.append(target)
                continue
            groups[target] = group.model_copy(update={"scale": scale}) if role == "down" else group
            used |= {name for name in own if _pattern(name) == group.source}
            used |= {name for name in shared.values() if _pattern(name) == group.shared}
        left_out |= {name for name in inside if name not in used and _is_left_out(name)}
        leftovers = [name for name in inside if name not in used and name not in left_out]
        if leftovers:
            raise CheckpointError(
                f"{_count(leftovers, 'tensor')} next to the experts of {module!r} have no place in a dense model: "
                f"{_some(leftovers)}. A shared expert must have the shape of the others. To merge it anyway, write a plan "
                "and give it with --plan.")
    if missing:
        raise CheckpointError(
            f"{_count(missing, 'tensor')} of the dense model are not among the experts: {_some(missing)}. Give a plan "
            "with --plan.")
    copied = {name for name in names if name not in used and name not in left_out}
    plan = MixturePlan(
        num_experts=num_experts, num_layers=len({_layer_prefix(f"{module}.") for module in modules}), dense_config=dense_config,
        groups=_as_patterns(groups), copied=sorted({_pattern(name) for name in copied}),
        left_out=sorted({_pattern(name) for name in left_out}), warnings=warnings or [])
    check_plan(plan, reader, targets)
    return plan


def check_plan(plan: MixturePlan, reader: CheckpointReader, targets: dict[str, list[int]]) -> None:
    """Raise CheckpointError unless a plan uses every tensor of the checkpoint, and makes every tensor of the dense model once
    and in its shape."""
    taken = [name for group in expand(plan, plan.groups) for name in sources(plan, group)]
    taken += [name for pattern in [*plan.copied, *plan.left_out] for name in _numbered(pattern, plan)]
    in_groups = {name for group in expand(plan, plan.groups) for name in sources(plan, group)}
    absent = sorted(name for name in in_groups if name not in reader)
    if absent:
        raise CheckpointError(f"The plan names {_count(absent, 'tensor')} that the model does not have: {_some(absent)}.")
    leftovers = sorted(set(reader.names()) - set(taken))
    if leftovers:
        raise CheckpointError(
            f"The plan has no place for {_count(leftovers, 'tensor')}: {_some(leftovers)}. Name them under groups, copied or "
            "left_out.")
    made = {group.target: made_shape(plan, group, reader) for group in expand(plan, plan.groups)}
    made |= {name: reader.shape(name) for pattern in plan.copied for name in _numbered(pattern, plan) if name in reader}
    lacking = sorted(set(targets) - set(made))
    if lacking:
        raise CheckpointError(
            f"The dense model needs {_count(lacking, 'tensor')} that the plan does not make: {_some(lacking)}.")
    other = sorted(name for name in made if name not in targets or made[name] != targets[name])
    if other:
        told = [f"{name!r} {made[name]} ({targets.get(name, 'not in the dense model')})" for name in other]
        raise CheckpointError(f"{_count(other, 'tensor')} would not fit the dense model: {_some(told, str)}.")


def expand(plan: MixturePlan, groups: list[ExpertGroup]) -> Iterator[ExpertGroup]:
    """The groups of every layer, with {layer} filled in."""
    for group in groups:
        yield from (_of(group, layer) for layer in (range(plan.num_layers) if "{layer}" in group.target else [0]))


def sources(plan: MixturePlan, group: ExpertGroup) -> list[str]:
    """The checkpoint's tensors that one dense tensor is made from, the shared expert's first; {layer} is filled in."""
    experts = [group.source.replace("{expert}", str(number)) for number in range(plan.num_experts)]
    return [*([group.shared] if group.shared else []), *dict.fromkeys(experts)]


def of_expert(plan: MixturePlan, group: ExpertGroup, reader: CheckpointReader) -> Iterator[torch.Tensor]:
    """The dense tensor of every expert in turn, the shared one first: views of the checkpoint."""
    if group.shared:
        yield _oriented(_part(reader.get(group.shared), group.part, group.shared_parts), group)
    for number in range(plan.num_experts):
        tensor = reader.get(group.source.replace("{expert}", str(number)))
        tensor = tensor if "{expert}" in group.source else tensor[number]
        yield _oriented(_part(tensor, group.part, group.parts), group)


def made_shape(plan: MixturePlan, group: ExpertGroup, reader: CheckpointReader) -> list[int]:
    """The shape of a group's dense tensor, without reading it. Raises CheckpointError for experts that differ in shape."""
    found = []
    for name in sources(plan, group)[1 if group.shared else 0:]:
        shape = reader.shape(name)
        if "{expert}" not in group.source:
            if shape[0] != plan.num_experts:
                raise CheckpointError(f"{name!r} is {shape}: its first dimension is not {plan.num_experts} experts.")
            shape = shape[1:]
        if shape[0] % group.parts:
            raise CheckpointError(f"{name!r} is {shape}: its rows cannot be cut into {group.parts} equal parts.")
        found.append([shape[0] // group.parts, *shape[1:]])
    if group.shared:
        rows, *row = reader.shape(group.shared)
        found.append([rows // group.shared_parts, *row])
    if any(shape != found[0] for shape in found):
        raise CheckpointError(
            f"The experts that make {group.target!r} differ in shape: {', '.join(map(str, dict.fromkeys(map(str, found))))}.")
    return found[0][::-1] if group.transpose else found[0]


def _group(
    reader: CheckpointReader, role: str, kind: str, target: str, shape: list[int], own: dict[str, tuple[str, str, str, bool]],
    shared: dict[tuple[str, str], str], num_experts: int,
) -> ExpertGroup:
    """The group that makes one dense tensor. Raises LookupError if there is none."""
    by_role = {found[1:3]: (name, found[3]) for name, found in own.items()}
    part, parts = 0, 1
    if (role, kind) not in by_role and role in ("gate", "up") and ("gate_up", kind) in by_role:
        part, parts = ("gate", "up").index(role), 2
        name, stacked = by_role["gate_up", kind]
    else:
        name, stacked = by_role[role, kind]
    source = reader.shape(name)[1:] if stacked else reader.shape(name)
    made = [source[0] // parts, *source[1:]]
    transpose = made != shape and made[::-1] == shape
    sibling, shared_parts = shared.get((role, kind)), 1
    if sibling is None and role in ("gate", "up") and ("gate_up", kind) in shared:
        sibling, shared_parts = shared["gate_up", kind], 2
        part = ("gate", "up").index(role)
    beside = [size // (shared_parts if axis == 0 else 1) for axis, size in enumerate(reader.shape(sibling))] if sibling else []
    return ExpertGroup(
        target=_pattern(target), source=_pattern(name), part=part, parts=parts, transpose=transpose,
        shared=_pattern(sibling) if sibling and beside == made else None, shared_parts=shared_parts)


def _split(name: str, reader: CheckpointReader, num_experts: int) -> tuple[str, str, str, bool] | None:
    """For an expert's tensor, the module of the experts, its role, its kind (weight or bias) and whether it is stacked; None
    for any other tensor."""
    role = _role(name)
    if role is None:
        return None
    indexed = re.fullmatch(r"(.+)\.[A-Za-z_]*experts?\.\d+\..+", name)
    if indexed:
        return indexed[1], *role, False
    shape = reader.shape(name)
    if len(shape) == (3 if role[1] == "weight" else 2) and shape[0] == num_experts:
        return re.sub(r"\.[A-Za-z_]*experts?$", "", _module(name)), *role, True
    return None


def _role(name: str) -> tuple[str, str] | None:
    """A tensor's role in an FFN (gate, up, gate_up, down) and its kind (weight, bias); None outside an FFN."""
    parts = name.split(".")
    kind = "bias" if parts[-1] == "bias" or parts[-1].endswith("_bias") else "weight"
    last = parts[-1].removesuffix("_bias") if parts[-1] not in ("weight", "bias") else parts[-2] if len(parts) > 1 else ""
    inside = any(part in name for part in ("mlp", "moe", "experts", "feed_forward", "ffn", "fc1", "fc2"))
    return (ROLES[last], kind) if last in ROLES and inside else None


def _module(name: str) -> str:
    """The module that contains a linear layer's tensor or a stacked parameter."""
    parts = name.split(".")
    return ".".join(parts[:-2] if parts[-1] in ("weight", "bias") else parts[:-1])


def _shared_modules(module: str, names: list[str]) -> list[str]:
    """Modules of shared experts that are next to ``module`` rather than in it."""
    parent = module.rpartition(".")[0]
    heads = {name.removeprefix(f"{parent}.").partition(".")[0] for name in names if name.startswith(f"{parent}.")}
    return [f"{parent}.{head}." for head in sorted(heads) if "shared" in head]


def _is_shared(name: str, module: str) -> bool:
    parent = module.rpartition(".")[0]
    return "shared" in name.removeprefix(f"{parent}.")


def _is_left_out(name: str) -> bool:
    return bool(LEFT_OUT & set(name.split(".")))


def _layer_prefix(name: str) -> str:
    """A name up to its first number: the decoder layer."""
    found = re.match(r".*?\.\d+\.", name)
    return found[0] if found else ""


def _pattern(name: str) -> str:
    """A name with {layer} for its first number and {expert} for its second."""
    parts, fields = name.split("."), iter(("{layer}", "{expert}"))
    return ".".join(next(fields, part) if part.isdecimal() else part for part in parts)


def _numbered(pattern: str, plan: MixturePlan) -> list[str]:
    layers = [pattern.replace("{layer}", str(layer)) for layer in range(plan.num_layers)] if "{layer}" in pattern else [pattern]
    return [name.replace("{expert}", str(number)) for name in layers
            for number in (range(plan.num_experts) if "{expert}" in name else [0])]


def _of(group: ExpertGroup, layer: int) -> ExpertGroup:
    names = ("target", "source", "shared")
    return group.model_copy(update={
        name: text.replace("{layer}", str(layer)) for name in names if (text := getattr(group, name))})


def _as_patterns(groups: dict[str, ExpertGroup]) -> list[ExpertGroup]:
    """One group for all layers. Raises CheckpointError if layers are made in different ways."""
    found: dict[str, ExpertGroup] = {}
    for group in groups.values():
        if found.setdefault(group.target, group) != group:
            raise CheckpointError(f"{group.target!r} is made in different ways in different layers, which no plan can express.")
    return list(found.values())


def _part(tensor: torch.Tensor, part: int, parts: int) -> torch.Tensor:
    size = tensor.shape[0] // parts
    return tensor if parts == 1 else tensor[part * size:(part + 1) * size]


def _oriented(tensor: torch.Tensor, group: ExpertGroup) -> torch.Tensor:
    return tensor.t() if group.transpose else tensor


def _count(names: list[str], noun: str) -> str:
    return f"1 {noun}" if len(names) == 1 else f"{len(names)} {noun}s"


def _some(names: list[str], form: Any = repr) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(form, names[:SHOWN_NAMES])) + more
