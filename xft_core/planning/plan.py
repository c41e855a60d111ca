"""The plan of a recipe: memory, disk and work of every stage that runs a model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from xft_core.planning import memory
from xft_core.planning.shape import Shape
from xft_core.planning.stage_plan import DataSize, StagePlan
from xft_core.planning.work import matched_steps, mixing_flops, mixing_passes, router_start_flops, router_start_rows
from xft_core.recipe.inactive_fields import learns, needs_features, tests_headroom
from xft_core.recipe.sections import Recipe, SftConfig, UpcycleConfig, WorkToMatch
from xft_core.recipe.sections.merge import CLOSED_FORMS, OPERATORS
from xft_core.recipe.steps import FACTS, MOE_MODEL, TUNED, Step, planned_roles


def make_plan(recipe: Recipe, shape: Shape, data: DataSize | None = None, problems: int | None = None) -> list[StagePlan]:
    """Plan the stages of a recipe for a model of this shape. Without ``data`` or ``problems``, work that depends on them is
    unknown."""
    if not shape.packs:  # as in training
        recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"packing": False})})
    given = _Given(recipe, shape, data, problems)
    return [WAYS[FACTS[step.stage].planned or ""](role, step, given) for role, step in planned_roles(recipe).items()]


def training_steps(
    sft: SftConfig, sequence: int, data: DataSize, shape: Shape | None = None, match: WorkToMatch | None = None,
) -> tuple[float, float]:
    """Optimizer steps, and average tokens per sequence including padding (packed sequences count as full). ``match``: for a
    dense model of this ``shape``, the work that determines the steps."""
    length = float(sequence) if sft.packing else min(data.padded_row or data.tokens_per_row, sequence)
    packed = data.tokens_per_row / length if data.sequences_per_row is None else data.sequences_per_row
    sequences = data.train_rows * packed if sft.packing else data.train_rows
    if match is not None and shape is not None:
        packed_length = data.train_rows * data.tokens_per_row / sequences
        return matched_steps(match, shape, sequences, sft.batch_size, packed_length, data.train_rows), length
    steps = max(1.0, math.ceil(sequences / sft.batch_size) * sft.epochs)
    return min(steps, sft.max_steps or steps), length


@dataclass(frozen=True)
class _Given:
    recipe: Recipe
    shape: Shape
    data: DataSize | None
    problems: int | None

    def upcycle(self, step: Step) -> UpcycleConfig | None:
        """The upcycle section if the step's model is the Mixture-of-Experts; None for a dense model."""
        return self.recipe.upcycle if step.model == MOE_MODEL or step.role == TUNED[MOE_MODEL] else None


def _upcycling(role: str, step: Step, given: _Given) -> StagePlan:
    moe, shape = given.recipe.upcycle, given.shape
    are_copies = moe.experts_from == "base" and not moe.is_stock
    stored_once = moe.store_experts == "once" and moe.expert_rank is None and are_copies
    parameters = shape.parameters if stored_once else shape.moe_parameters(moe)
    upcycled = parameters * float(shape.stored_bytes)
    copied = StagePlan(role, memory.Memory(0.0), kept=upcycled, written=upcycled)  # from file to file
    if moe.router_start == "random":
        return copied
    recipe, data, flops, trains = given.recipe, given.data, None, moe.router_start == "trained"
    if data is not None:
        tokens = router_start_rows(data.train_rows) * data.tokens_per_row
        flops = tokens * router_start_flops(shape, moe, data.tokens_per_row)
    needed = memory.router_start_memory(shape, moe, recipe.sft.precision, recipe.data.max_length)
    written = upcycled * (2 if trains else 1)  # once more, with the trained routers
    return replace(copied, flops=flops, memory=needed, written=written, moe=trains)


def _clustering(role: str, step: Step, given: _Given) -> StagePlan:
    """A forward pass over every training row; the cost of k-means is negligible."""
    recipe, shape, data = given.recipe, given.shape, given.data
    return StagePlan(
        role, memory.row_losses_memory(shape, None, recipe.sft.precision, recipe.data.max_length),
        flops=None if data is None else data.train_rows * data.tokens_per_row * shape.forward_flops(data.tokens_per_row))


def _training(role: str, step: Step, given: _Given) -> StagePlan:
    shape, data, upcycle = given.shape, given.data, given.upcycle(step)
    sft: SftConfig = step.given["sft"]
    sequence = given.recipe.data.max_length
    needed = memory.training_memory(shape, upcycle, sft, sequence)
    flops = None
    is_branch = {"part", "sources", "cluster"} & step.given.keys()  # domains and clusters are assumed to be equally large
    branches = given.recipe.upcycle.num_routed
    rows = replace(data, train_rows=math.ceil(data.train_rows / branches)) if data and is_branch else data
    if rows:
        steps, length = training_steps(sft, sequence, rows, shape, step.given.get("match"))
        passes = 4 if sft.gradient_checkpointing else 3
        if sft.adapter == "lora" and upcycle is None:  # no gradients of weights
            passes -= 1
        tokens = steps * sft.batch_size * length
        flops = tokens * shape.forward_flops(length, upcycle, training=True) * passes
        if upcycle and sft.router_gradient == "dense":  # another forward pass through all routed experts
            flops += tokens * 2 * shape.num_layers * upcycle.num_routed * shape.ffn
        snapshots, averages = step.given.get("snapshots", 0), int(sft.average != "none")
        flops += (2 + snapshots + averages) * (_held_out_flops(shape, upcycle, data) or 0.0)
    alone = memory.training_memory(shape, upcycle, sft.model_copy(update={"num_processes": 1, "num_nodes": 1}), sequence)
    weights, checkpoint = alone.weights, alone.weights + alone.optimizer
    models = 1 + step.given.get("snapshots", 0) + int(sft.average != "none")  # each of the size of the result
    checkpoint += alone.average + step.given.get("snapshots", 0) * weights
    return StagePlan(
        role, needed, kept=models * weights, scratch=checkpoint, flops=flops, written=models * weights + checkpoint,
        moe=upcycle is not None, **_processes(sft))


def _mixing(role: str, step: Step, given: _Given) -> StagePlan:
    recipe = given.recipe
    needed = memory.mix_memory(given.shape, recipe.upcycle, recipe.merge, recipe.data.max_length)
    ffns = float(given.shape.num_layers * given.shape.ffn * given.shape.stored_bytes)
    kept = ffns if recipe.merge.method in OPERATORS else 0.0
    return StagePlan(role, needed, kept=kept, written=kept, flops=_mix_flops(recipe, given.shape, given.data),
                     **(_processes(recipe.sft) if recipe.merge.method == "learned" else {}))


def _merging(role: str, step: Step, given: _Given) -> StagePlan:
    recipe, shape = given.recipe, given.shape
    merged = float(shape.parameters * memory.WIDTH[recipe.sft.precision])
    if recipe.merge.export_adapter:  # another copy of the shared weights, and the adapter in fp32
        merged = 2 * merged + 4.0 * shape.num_layers * shape.low_rank(recipe.upcycle)
    return StagePlan(
        role, memory.merge_memory(shape, recipe.upcycle, recipe.sft.precision, recipe.data.max_length), kept=merged,
        written=merged, flops=_held_out_flops(shape, None, given.data))


def _averaging(role: str, step: Step, given: _Given) -> StagePlan:
    """Complete models are summed from file to file, one block at a time. Then the result is measured."""
    recipe, shape = given.recipe, given.shape
    written = float(shape.parameters * memory.WIDTH[recipe.sft.precision])
    return StagePlan(
        role, memory.merge_memory(shape, recipe.upcycle, recipe.sft.precision, recipe.data.max_length), kept=written,
        written=written, flops=_held_out_flops(shape, None, given.data))


def _choosing(role: str, step: Step, given: _Given) -> StagePlan:
    """The uniform merge of each step is measured on as many rows as are held out, and the best step is copied."""
    recipe, shape = given.recipe, given.shape
    uniform = recipe.merge.model_copy(update={"method": "uniform"})
    kept = float(shape.moe_parameters(recipe.upcycle) * memory.WIDTH[recipe.sft.precision])
    held_out = _held_out_flops(shape, None, given.data)
    return StagePlan(
        role, memory.mix_memory(shape, recipe.upcycle, uniform, recipe.data.max_length), kept=kept, written=kept,
        flops=None if held_out is None else held_out * recipe.sft.merge_checkpoints)


def _preferring(role: str, step: Step, given: _Given) -> StagePlan:
    """Two rows per pair, with all their logits and the log-softmax of these in fp32. The number of pairs is unknown."""
    sft, shape, sequence = given.recipe.dpo.training(), given.shape, given.recipe.data.max_length
    rows = sft.model_copy(update={"micro_batch_size": 2 * sft.micro_batch_size, "batch_size": 2 * sft.batch_size})
    trained = memory.training_memory(shape, None, rows, sequence)
    logits = 12.0 * rows.micro_batch_size * sequence * shape.vocabulary
    needed = replace(trained, working=trained.working + logits)
    weights = float(shape.parameters * memory.WIDTH[sft.precision])
    return StagePlan(role, needed, kept=weights, scratch=weights + trained.optimizer, flops=None,
                     written=2 * weights + trained.optimizer)


def _ensemble(role: str, step: Step, given: _Given) -> StagePlan:
    """Every member and every mean is tried on the selection rows. Learned shares need gradients of all weights."""
    recipe, shape, merge = given.recipe, given.shape, given.recipe.merge
    averaged = _averaging(role, step, given)
    members, learned = len(step.given["models"]), merge.ensemble == "learned"
    needed = averaged.memory
    if learned:
        sft = recipe.sft.model_copy(update={"num_processes": 1, "num_nodes": 1, "gradient_checkpointing": False})
        trained = memory.training_memory(shape, None, sft, recipe.data.max_length)
        needed = memory.Memory(trained.weights, trained.gradients, working=trained.working, certain=trained.weights)
    if given.data is None or averaged.flops is None:
        return replace(averaged, memory=needed, flops=None)
    tokens = min(merge.ensemble_rows, given.data.train_rows) * given.data.tokens_per_row
    passes = 3 * (merge.ensemble_steps + 1) if learned else 2 * members - 1
    flops = averaged.flops + passes * tokens * shape.forward_flops(given.data.tokens_per_row)
    return replace(averaged, memory=needed, flops=flops)


def _row_losses(role: str, step: Step, given: _Given) -> StagePlan:
    """Every held-out row separately."""
    recipe, shape, upcycle = given.recipe, given.shape, given.upcycle(step)
    return StagePlan(
        role, memory.row_losses_memory(shape, upcycle, recipe.sft.precision, recipe.data.max_length),
        flops=_held_out_flops(shape, upcycle, given.data), moe=upcycle is not None)


def _unknown(role: str, step: Step, given: _Given) -> StagePlan:
    """A stage with unknown needs."""
    return StagePlan(role, memory.Memory(0.0), flops=None, memory_read=None)


def _processes(sft: SftConfig) -> dict[str, Any]:
    return {"processes": sft.num_processes, "nodes": sft.num_nodes}


HEADROOM_PROBES = 13  # forward passes over the rows of the headroom test, in addition to one per expert


def _mix_flops(recipe: Recipe, shape: Shape, data: DataSize | None) -> float | None:
    """Forward passes, gradients of all activations and of the FFNs' weights. Reading the experts is not included."""
    if data is None:
        return None
    held_out = 2 * (_held_out_flops(shape, None, data) or 0.0)
    merge, sequence = recipe.merge, recipe.data.max_length
    total_rows = data.train_rows
    if merge.rows == "reserved":
        total_rows = min(recipe.data.reserved_rows or data.train_rows, data.train_rows)
    looked_at = min(merge.calibration_rows, total_rows) * data.tokens_per_row
    if merge.search != "none":
        rows = min(merge.search_rows, total_rows)
        held_out += merge.search_trials * rows * data.tokens_per_row * shape.forward_flops(data.tokens_per_row)
    if merge.method == "routing":
        return held_out + looked_at * shape.forward_flops(sequence, recipe.upcycle)
    if merge.method in CLOSED_FORMS:
        return held_out + _closed_form_flops(recipe, shape, looked_at)
    if merge.delta_scale != 1:
        held_out *= 1.5  # also measured without it
    if not learns(merge):
        return held_out
    teacher = recipe.upcycle if merge.objective == "distill" and merge.generator_from is None else None
    per_token = mixing_flops(shape, sequence, teacher)
    extra = looked_at * (shape.forward_flops(sequence, recipe.upcycle) + per_token) if needs_features(merge) else 0.0
    if merge.generator_from is not None:
        return held_out + extra
    if tests_headroom(merge):
        extra += looked_at * (per_token + HEADROOM_PROBES * shape.forward_flops(sequence))
        extra += looked_at * recipe.upcycle.num_experts * shape.forward_flops(sequence)
    sequences = total_rows * data.tokens_per_row / sequence * merge.epochs
    if merge.max_steps:
        sequences = min(sequences, merge.max_steps * merge.batch_size)
    return held_out + extra + sequences * sequence * per_token * mixing_passes(merge.cross_validation)


def _closed_form_flops(recipe: Recipe, shape: Shape, tokens: float) -> float:
    """Statistics on calibration rows, in as many passes as memory requires, and RegMean's linear systems."""
    upcycle, method, sequence = recipe.upcycle, recipe.merge.method, recipe.data.max_length
    layer = memory.statistics_of_layer(shape, upcycle, method)
    passes = math.ceil(shape.num_layers / max(1, memory.LAYERS_BYTES // layer))
    hidden, ffn, ups = float(shape.hidden_size), float(shape.ffn_size), 2 if shape.gated else 1
    of_token = upcycle.num_experts_per_tok * shape.num_layers
    if method == "fisher":
        return tokens * (passes * 2 * shape.forward_flops(sequence, upcycle) + of_token * 6 * shape.ffn)
    gram = 2 * (ups * hidden**2 + ffn**2)
    solved = ups * hidden**3 + ffn**3 + 2 * upcycle.num_experts * (ups * hidden**2 * ffn + ffn**2 * hidden)
    return (tokens * (passes * shape.forward_flops(sequence, upcycle) + of_token * (2 * shape.ffn + gram))
            + shape.num_layers * solved)


def _held_out_flops(shape: Shape, upcycle: UpcycleConfig | None, data: DataSize | None) -> float | None:
    if data is None:
        return None
    return data.held_out_rows * data.tokens_per_row * shape.forward_flops(data.tokens_per_row, upcycle)


def _generation(role: str, step: Step, given: _Given) -> StagePlan:
    """Answers of maximum length, generated one token per batch at a time. Each token reads every weight."""
    recipe, shape, problems, upcycle = given.recipe, given.shape, given.problems, given.upcycle(step)
    needed = memory.generate_memory(shape, upcycle, recipe)
    if problems is None:
        return StagePlan(role, needed, flops=None, memory_read=None)
    config = recipe.generate
    samples = problems * config.num_samples
    batches = math.ceil(samples / config.batch_size)
    length = memory.PROMPT_TOKENS + config.max_new_tokens
    return StagePlan(
        role, needed, flops=samples * length * shape.forward_flops(length, upcycle),
        memory_read=batches * config.max_new_tokens * needed.weights, tokens=float(batches * config.max_new_tokens),
        moe=upcycle is not None)


# Planning functions, by the name in the facts of the stage (recipe/steps.py).
WAYS: dict[str, Callable[[str, Step, _Given], StagePlan]] = {
    "upcycling": _upcycling, "training": _training, "mixing": _mixing, "merging": _merging, "generation": _generation,
    "averaging": _averaging, "row losses": _row_losses, "choosing": _choosing, "ensemble": _ensemble, "preferring": _preferring,
    "clustering": _clustering, "unknown": _unknown}
