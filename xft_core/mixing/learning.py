"""Learning the mixing coefficients at the cost of training one dense model.

W is built once per optimizer step, the dense model runs forward and backward, and since dL/dc_i = <dL/dW, W_i> the
gradient is projected on the experts afterwards, one tensor of one layer at a time, from disk. Only alpha (and lambda,
where it is learned) has optimizer state. Shape suffixes: L layers, N experts (shared one first), R routed.

Several processes share the micro batches of a step out. Each projects its own dL/dW, since that is linear, so that a few
numbers for each layer are all that is summed over them.
"""

import logging
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import Rows
from xft_core.errors import CheckpointError
from xft_core.mixing.mixture import ExpertTensor, MixtureReader, mixing_weights
from xft_core.models.config import transformers_config
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.group import is_first, number_of_processes, process_number, summed
from xft_core.runtime.progress import describe_progress
from xft_core.store.checkpoints import PREFIX, keep_newest, seal
from xft_core.store.curves import MetricsLog
from xft_core.store.results.curve import CurveValues
from xft_core.training.response_loss import response_loss
from xft_core.training.resume import step_to_go_on_from

logger = logging.getLogger(__name__)

STEPS_BETWEEN_CHECKPOINTS = 25
STEPS_BETWEEN_POINTS = 5
FILE_NAME = "mixing.safetensors"


class MixedModel:
    """The dense model whose FFNs are a mixture of the experts'. Everything else is the tuned MoE's own and fixed."""

    def __init__(self, mixture: MixtureReader, dtype: torch.dtype, device: torch.device) -> None:
        self.mixture = mixture
        with no_init_weights():
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                transformers_config(mixture.dense_config), dtype=dtype)
        self.model.tie_weights()
        self.model.requires_grad_(False)
        parameters = dict(self.model.named_parameters())
        self._mixed: list[list[tuple[torch.nn.Parameter, ExpertTensor]]] = [
            [(parameters.pop(tensor.name), tensor) for tensor in mixture.expert_tensors(layer)]
            for layer in range(mixture.num_layers)]
        buffers = {name: item for name, item in self.model.named_buffers() if name in mixture.reader}
        with torch.no_grad():
            for name, parameter in (parameters | buffers).items():
                parameter.copy_(mixture.reader.get(mixture.family.stored_name(name)))
        self.model.to(device).eval()

    @torch.no_grad()
    def apply(self, weight_LN: torch.Tensor) -> None:
        """Set every FFN to the mixture of its layer's experts with shares ``weight_LN`` (rows sum to one)."""
        for layer, tensors in enumerate(self._mixed):
            for parameter, tensor in tensors:
                for rows, block in self.mixture.mixed(tensor, weight_LN[layer], parameter.dtype, parameter.device):
                    parameter[rows].copy_(block)

    def want_gradient(self) -> None:
        """Make the FFNs collect dL/dW in the backward passes that follow, from zero."""
        for tensors in self._mixed:
            for parameter, _ in tensors:
                parameter.requires_grad_(True)
                parameter.grad = None

    def weight_gradient(self) -> torch.Tensor:
        """dL/dc from the collected dL/dW, fp64 L,N, up to what is equal for all experts of a layer."""
        nothing_N = torch.zeros(self.mixture.num_experts, dtype=torch.float64)
        return torch.stack([
            sum((self.mixture.gradient(tensor, parameter.grad).cpu()
                 for parameter, tensor in tensors if parameter.grad is not None), start=nothing_N)
            for tensors in self._mixed])


def learn(
    mixed: MixedModel, rows: Rows, merge: MergeConfig, seed: int, checkpoints: Path, metrics: MetricsLog,
    shared_weight_start: float,
) -> tuple[torch.Tensor, int]:
    """Learn alpha (and lambda if merge.shared_expert_weight is None) on ``rows`` by Adam with linear decay.

    Goes on from the last checkpoint in ``checkpoints``. Of several processes, all must call it.
    Returns the shares, fp64 L,N, and the number of steps.
    """
    data = PackedRows(rows, max(rows.lengths()), packing=mixed.mixture.family.packs)
    batches = _batches(len(data), merge, seed)
    parameters = _start(mixed.mixture, merge, shared_weight_start)
    if parameters["alpha"].shape[1] == 1 and len(parameters) == 1:
        logger.info("mix: one routed expert and a fixed shared_expert_weight leave nothing to learn")
        return _weights(parameters, mixed.mixture, merge).detach(), 0
    optimizer = torch.optim.Adam(list(parameters.values()), lr=merge.learning_rate)
    done = _resume(checkpoints, parameters, optimizer, metrics)
    warmup = min(merge.warmup_steps, len(batches) // 10)
    for step in range(done + 1, len(batches) + 1):
        with torch.enable_grad():
            weight_LN = _weights(parameters, mixed.mixture, merge)
        mixed.apply(weight_LN.detach())
        loss = _collect_gradient(mixed, data, batches[step - 1], merge.micro_batch_size)
        optimizer.zero_grad()
        weight_LN.backward(summed(mixed.weight_gradient()))
        rate = min(step / (warmup + 1), (len(batches) - step + 1) / max(1, len(batches) - warmup), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = merge.learning_rate * rate
        optimizer.step()
        if not is_first():
            continue
        if step % STEPS_BETWEEN_POINTS == 0 or step in (1, len(batches)):
            metrics.log(step, CurveValues(loss=loss, learning_rate=merge.learning_rate * rate).flat())
            logger.info(describe_progress("mix", step, len(batches), f"loss {loss:.4f}"))
        if step % STEPS_BETWEEN_CHECKPOINTS == 0:
            _save(checkpoints, step, parameters, optimizer, metrics)
    return _weights(parameters, mixed.mixture, merge).detach(), len(batches)


def _collect_gradient(mixed: MixedModel, data: PackedRows, batch: list[int], micro_batch_size: int) -> float:
    """Backward passes of the mean response loss over one batch of sequences, this process's part of them; returns the loss
    of the whole batch."""
    device = mixed.model.device
    first, step = process_number() * micro_batch_size, number_of_processes() * micro_batch_size
    micro = [
        data.collate([data[index] for index in batch[start:start + micro_batch_size]])
        for start in range(first, len(batch), step)]
    tokens = int(summed(torch.tensor(sum(int((item["labels"][:, 1:] != IGNORED).sum()) for item in micro))))
    mixed.want_gradient()
    total = 0.0
    for item in micro:
        loss = response_loss(mixed.model, {name: tensor.to(device) for name, tensor in item.items()}) / tokens
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


def _start(mixture: MixtureReader, merge: MergeConfig, shared_weight_start: float) -> dict[str, torch.Tensor]:
    num_routed = mixture.num_experts - int(mixture.upcycle.shared_expert)
    parameters = {"alpha": torch.zeros(mixture.num_layers, num_routed, dtype=torch.float64, requires_grad=True)}
    if mixture.upcycle.shared_expert and merge.shared_expert_weight is None:
        logit = math.log(shared_weight_start / (1 - shared_weight_start))
        parameters["shared_logit"] = torch.full((mixture.num_layers,), logit, dtype=torch.float64, requires_grad=True)
    return parameters


def _weights(parameters: dict[str, torch.Tensor], mixture: MixtureReader, merge: MergeConfig) -> torch.Tensor:
    if not mixture.upcycle.shared_expert:
        return mixing_weights(parameters["alpha"], None)
    if "shared_logit" in parameters:
        return mixing_weights(parameters["alpha"], torch.sigmoid(parameters["shared_logit"]))
    fixed = torch.full((mixture.num_layers,), float(merge.shared_expert_weight or 0.0), dtype=torch.float64)
    return mixing_weights(parameters["alpha"], fixed)


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
    """Put the last checkpoint's values into parameters and optimizer; returns its step, 0 without one.

    Raises CheckpointError for one that is whole but not of this work."""
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
        raise CheckpointError(f"{str(directory)!r} holds no coefficients of this work. Remove it to start anew.") from None
    return step
