"""Learning the mixing coefficients at the cost of training one dense model.

W is built once per optimizer step, the dense model runs forward and backward, and since dL/dc_i = <dL/dW, W_i> the
gradient is projected onto the experts afterwards, one tensor of one layer at a time, from disk. Only the few parameters of
the shares (parameters.py) have optimizer state. Shape suffixes: L layers, G groups, N experts (shared one first).

Several processes divide the micro batches of a step among them. Projection is linear, so each projects its own dL/dW, and only
a few numbers for each layer are summed over processes.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import Rows
from xft_core.errors import CheckpointError
from xft_core.mixing.delta_scale import scaled
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.objective import Objective, nll
from xft_core.mixing.parameters import MixingParameters
from xft_core.mixing.regularization import is_penalized, penalty, without_one_expert
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.group import is_first, number_of_processes, process_number, summed
from xft_core.runtime.progress import describe_progress
from xft_core.store.checkpoints import PREFIX, keep_newest, seal
from xft_core.store.curves import MetricsLog
from xft_core.store.results.curve import CurveValues
from xft_core.training.resume import step_to_go_on_from

logger = logging.getLogger(__name__)

STEPS_BETWEEN_CHECKPOINTS = 25
STEPS_BETWEEN_POINTS = 5
FILE_NAME = "mixing.safetensors"
GENERATOR_WEIGHT_DECAY = 1e-2  # AdamW's, for a generator's weights; free coefficients have none


@dataclass(frozen=True)
class Learned:
    """``weight``: shares of the experts, fp64 L,N or L,G,N; ``delta_scale_L``: gamma of every layer, None for 1;
    ``outside_scale``: gamma of all other weights; ``steps``: optimizer steps; ``kept_start``: whether the objective with
    penalties was no lower than at the start, so that these are the start's shares."""

    weight: torch.Tensor
    delta_scale_L: torch.Tensor | None
    outside_scale: float
    steps: int
    kept_start: bool = False

    @classmethod
    @torch.no_grad()
    def of(cls, parameters: MixingParameters, steps: int, kept_start: bool = False) -> "Learned":
        """The result that the current parameters stand for."""
        gamma_L, outside = parameters.delta_scale(), parameters.outside_scale()
        return cls(
            parameters.shares().detach(), None if gamma_L is None else gamma_L.detach().clone(),
            1.0 if outside is None else float(outside), steps, kept_start)


def learn(
    mixed: MixedModel, rows: Rows, merge: MergeConfig, seed: int, checkpoints: Path, metrics: MetricsLog,
    shared_weight_start: float, objective: Objective = nll, generator: torch.nn.Module | None = None,
) -> Learned:
    """Learn the mixing parameters on ``rows`` by Adam with linear decay.

    Resumes from the last checkpoint in ``checkpoints``. If there are several processes, all must call it.

    Args:
        mixed: the model; it keeps the last shares that were applied.
        rows: rows to learn on.
        merge: the recipe's section.
        seed: of the order of the rows, and of which experts are left out.
        checkpoints: an existing directory.
        metrics: the curve.
        shared_weight_start: initial value of a learned lambda.
        objective: minimised; a sum over the response tokens of a batch.
        generator: computes alpha; None for free coefficients.
    """
    data = PackedRows(rows, max(rows.lengths()), packing=mixed.mixture.family.packs)
    batches = _batches(len(data), merge, seed)
    parameters = MixingParameters(mixed.mixture, merge, mixed.granularity, shared_weight_start, generator)
    if parameters.nothing_to_learn:
        logger.info("mix: one routed expert and a fixed shared_expert_weight leave nothing to learn")
        return Learned.of(parameters, 0)
    with torch.no_grad():
        start = {name: tensor.detach().clone() for name, tensor in parameters.tensors.items()}
        uniform = parameters.shares()
    optimizer = _optimizer(parameters, merge)
    done = _resume(checkpoints, parameters.tensors, optimizer, metrics)
    warmup = min(merge.warmup_steps, len(batches) // 10)
    first_routed = int(mixed.mixture.upcycle.shared_expert)
    for step in range(done + 1, len(batches) + 1):
        with torch.enable_grad():
            weight = parameters.shares()
            used = weight
            if merge.expert_dropout:
                used = without_one_expert(weight, first_routed, merge.expert_dropout, seed, step)
            members, outside = parameters.with_base(used), parameters.outside_scale()
        mixed.apply(members.detach(), 1.0 if outside is None else float(outside.detach()))
        wants_outside = outside is not None and outside.requires_grad
        loss = _collect_gradient(mixed, data, batches[step - 1], merge.micro_batch_size, objective, wants_outside)
        optimizer.zero_grad()
        ends, gradients = [members], [summed(mixed.weight_gradient())]
        if outside is not None and wants_outside:
            ends, gradients = [*ends, outside], [*gradients, summed(mixed.outside_gradient())]
        if is_penalized(merge):
            with torch.enable_grad():
                total = penalty(parameters, weight, uniform, merge)
            ends, gradients = [*ends, total], [*gradients, torch.ones_like(total)]
        torch.autograd.backward(ends, gradients)
        rate = min(step / (warmup + 1), (len(batches) - step + 1) / max(1, len(batches) - warmup), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = merge.learning_rate * rate
        optimizer.step()
        if not is_first():
            continue
        if step % STEPS_BETWEEN_POINTS == 0 or step in (1, len(batches)):
            gamma = parameters.tensors.get("delta_scale")
            metrics.log(step, CurveValues(
                loss=loss, learning_rate=merge.learning_rate * rate,
                delta_scale=None if gamma is None else float(gamma.detach().mean())).flat())
            logger.info(describe_progress("mix", step, len(batches), f"loss {loss:.4f}"))
        if step % STEPS_BETWEEN_CHECKPOINTS == 0:
            _save(checkpoints, step, parameters.tensors, optimizer, metrics)
    if is_penalized(merge) and not _lowers(mixed, data, merge, objective, parameters, start, uniform):
        _set(parameters.tensors, start)
        logger.info("mix: the objective with its penalty is no lower than that of uniform mixing, which is used")
        return Learned.of(parameters, len(batches), kept_start=True)
    return Learned.of(parameters, len(batches))


def apply_learned(mixed: MixedModel, learned: Learned) -> None:
    """Apply the learned shares and scales to the model."""
    weight, gamma_L = learned.weight, learned.delta_scale_L
    mixed.apply(weight if gamma_L is None else scaled(weight, gamma_L), learned.outside_scale)


@torch.no_grad()
def objective_now(
    mixed: MixedModel, rows: Rows, micro_batch_size: int, objective: Objective, gradient: bool = False, outside: bool = False,
) -> float:
    """The objective of the current model over all ``rows`` [nats per response token]. Several processes each do their part.
    ``gradient``: also collect dL/dW, from zero; ``outside``: also of the weights outside the FFNs."""
    data = PackedRows(rows, max(rows.lengths()), packing=mixed.mixture.family.packs)
    if not gradient:
        return _objective_now(mixed, data, list(range(len(data))), micro_batch_size, objective, backward=False)
    with torch.enable_grad():
        return _collect_gradient(mixed, data, list(range(len(data))), micro_batch_size, objective, outside)


@torch.no_grad()
def objective_of(
    mixed: MixedModel, parameters: MixingParameters, data: PackedRows, micro_batch_size: int, objective: Objective,
) -> float:
    """The objective over all sequences of ``data`` [nats per response token]. Several processes each do their part."""
    outside = parameters.outside_scale()
    mixed.apply(parameters.with_base(parameters.shares()), 1.0 if outside is None else float(outside))
    return _objective_now(mixed, data, list(range(len(data))), micro_batch_size, objective, backward=False)


def _lowers(
    mixed: MixedModel, data: PackedRows, merge: MergeConfig, objective: Objective, parameters: MixingParameters,
    start: dict[str, torch.Tensor], uniform: torch.Tensor,
) -> bool:
    """Whether the learned parameters have a lower objective, penalty included, than the start, on the training rows."""
    def whole() -> float:
        with torch.no_grad():
            added = float(penalty(parameters, parameters.shares(), uniform, merge))
        return objective_of(mixed, parameters, data, merge.micro_batch_size, objective) + added

    learned, found = {name: tensor.detach().clone() for name, tensor in parameters.tensors.items()}, whole()
    _set(parameters.tensors, start)
    at_start = whole()
    _set(parameters.tensors, learned)
    return found < at_start


@torch.no_grad()
def _set(tensors: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _optimizer(parameters: MixingParameters, merge: MergeConfig) -> torch.optim.Adam:
    """Adam; AdamW for a generator, whose weights decay."""
    made = [tensor for name, tensor in parameters.tensors.items() if name.startswith("generator.")]
    if not made:
        return torch.optim.Adam(list(parameters.tensors.values()), lr=merge.learning_rate)
    others = [tensor for name, tensor in parameters.tensors.items() if not name.startswith("generator.")]
    groups = [{"params": made, "weight_decay": GENERATOR_WEIGHT_DECAY}]
    return torch.optim.AdamW(groups + ([{"params": others, "weight_decay": 0.0}] if others else []), lr=merge.learning_rate)


def _collect_gradient(
    mixed: MixedModel, data: PackedRows, batch: list[int], micro_batch_size: int, objective: Objective, outside: bool,
) -> float:
    """Run this process's part of the backward passes of the mean objective over one batch of sequences. Returns the objective
    of the whole batch."""
    mixed.want_gradient(outside)
    return _objective_now(mixed, data, batch, micro_batch_size, objective, backward=True)


def _objective_now(
    mixed: MixedModel, data: PackedRows, batch: list[int], micro_batch_size: int, objective: Objective, backward: bool,
) -> float:
    device = mixed.model.device
    first, step = process_number() * micro_batch_size, number_of_processes() * micro_batch_size
    micro = [
        data.collate([data[index] for index in batch[start:start + micro_batch_size]])
        for start in range(first, len(batch), step)]
    tokens = int(summed(torch.tensor(sum(int((item["labels"][:, 1:] != IGNORED).sum()) for item in micro))))
    total = 0.0
    for item in micro:
        loss = objective(mixed.model, {name: tensor.to(device) for name, tensor in item.items()}) / tokens
        if backward:
            loss.backward()
        total += float(loss.detach())
    return float(summed(torch.tensor(total, dtype=torch.float64)))


def _batches(num_sequences: int, merge: MergeConfig, seed: int) -> list[list[int]]:
    """Sequence numbers of every optimizer step, in the order of the seed."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < num_sequences * merge.epochs:
        order += torch.randperm(num_sequences, generator=generator).tolist()
    order = order[:max(1, round(num_sequences * merge.epochs))]
    batches = [order[start:start + merge.batch_size] for start in range(0, len(order), merge.batch_size)]
    return batches[:merge.max_steps]


def _save(
    checkpoints: Path, step: int, parameters: dict[str, torch.Tensor], optimizer: torch.optim.Adam, metrics: MetricsLog,
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        tensors |= {
            name: parameter.detach(), f"{name}.exp_avg": state["exp_avg"], f"{name}.exp_avg_sq": state["exp_avg_sq"],
            f"{name}.step": state["step"]}
    directory = checkpoints / f"{PREFIX}{step}"
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / FILE_NAME)
    metrics.copy_to(directory)
    seal(directory)
    keep_newest(checkpoints, 2)


def _resume(
    checkpoints: Path, parameters: dict[str, torch.Tensor], optimizer: torch.optim.Adam, metrics: MetricsLog,
) -> int:
    """Load the last checkpoint into parameters and optimizer. Returns its step, 0 if there is none.

    Raises CheckpointError for a complete checkpoint of other work."""
    step = step_to_go_on_from(checkpoints, metrics, "mix")
    if not step:
        return 0
    directory = checkpoints / f"{PREFIX}{step}"
    try:
        tensors = load_file(directory / FILE_NAME)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])
                optimizer.state[parameter] = {
                    key: tensors[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    except (OSError, SafetensorError, KeyError, RuntimeError):
        raise CheckpointError(f"{str(directory)!r} holds no coefficients of this work. Remove it to start over.") from None
    return step
