"""transformers.Trainer with the routers' losses, curves on disk, and checkpoints that are complete or absent.

Several processes (FSDP2) divide the same forward passes as one process, with the same noise. Curves and checkpoints are equal
apart from rounding, and a run may continue from its last checkpoint with another number of processes.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.optimization import Adafactor
from transformers.trainer_callback import PrinterCallback

from xft_core.data.order import SeededOrder
from xft_core.data.packing import IGNORED, PackedRows
from xft_core.errors import CheckpointError, XftError
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.low_rank import LowRankExperts
from xft_core.recipe.checks import TrainingWatch
from xft_core.recipe.sections import ChecksConfig, SftConfig
from xft_core.runtime.group import is_first, number_of_processes, process_number, summed
from xft_core.runtime.progress import describe_progress, on_terminal
from xft_core.store.checkpoints import PREFIX
from xft_core.store.curves import MetricsLog
from xft_core.store.results.curve import CurveValues, read_curve
from xft_core.store.results.sft import TrainingMetrics
from xft_core.training.averaging import RunningAverage
from xft_core.training.callbacks import AfterStep, Checkpoints, Epochs, ProgressBar, Routers, experts_to_average
from xft_core.training.held_out import take_routings
from xft_core.training.optimizer_state import load_state, save_state
from xft_core.training.response_loss import response_loss
from xft_core.training.resume import step_to_go_on_from
from xft_core.training.router_terms import RouterTerms
from xft_core.training.sharded_adafactor import ShardedAdafactor
from xft_core.training.sharding import load_optimizer_state, shard, whole_optimizer_state, whole_weights
from xft_core.training.snapshots import Snapshots, restore_snapshots, snapshot_steps

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
CURVES = ["loss", "learning_rate", "grad_norm"]


class TrainingFailed(XftError):
    """The loss is no longer a number."""


class XftTrainer(Trainer):
    """One code path for dense models and for the MoE; only the latter has routers to balance."""

    def __init__(self, model: PreTrainedModel, data: PackedRows, sft: SftConfig, seed: int, directory: Path,
                 metrics: MetricsLog, checks: ChecksConfig, snapshots: int = 0) -> None:
        self.sft, self.metrics, self.directory, self.checks = sft, metrics, directory, checks
        self.watch = TrainingWatch(read_curve(metrics.path))
        self.blocks = moe_blocks(model)
        self.processes = number_of_processes()
        self.order = SeededOrder(len(data), seed, sft.micro_batch_size * self.processes)
        self.steps_of_epoch = math.ceil(len(data) / sft.batch_size)
        self._tokens, self._time_at_log = 0, time.monotonic()
        self._pass = 0
        arguments = training_arguments(sft, seed, directory, len(data))
        self.terms = RouterTerms(self.blocks, sft, arguments.max_steps) if self.blocks else None
        if self.processes > 1:
            shard(model)
        super().__init__(
            model=model, args=arguments, train_dataset=data, data_collator=data.collate,
            callbacks=[Epochs(self.order, self.steps_of_epoch), Routers(self.terms)])
        taken = Snapshots(directory, snapshot_steps(snapshots, self.args.max_steps))
        self.add_callback(Checkpoints(metrics, taken))
        self.average = RunningAverage(sft, self.args.max_steps) if sft.average != "none" else None
        experts = experts_to_average(self.blocks) if sft.expert_averaging else []
        self.add_callback(AfterStep(experts, sft, self.average, taken))
        self.loss_is_scaled_for_ga = True
        # Already placed and sharded: accelerate must only add autocast.
        self.is_distributed_loading_by_transformers = self.processes > 1
        self.remove_callback(PrinterCallback)
        self.bar = tqdm(unit="step", desc="sft") if on_terminal() and is_first() else None
        if self.bar is not None:
            self.add_callback(ProgressBar(self.bar))

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: PreTrainedModel | None = None) -> tuple[Any, Any]:
        """The Trainer's; with several processes, Adafactor is the one for sharded parameters."""
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return (ShardedAdafactor if kind is Adafactor and number_of_processes() > 1 else kind), options

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with a separate learning rate for the changes of low-rank experts if there is one."""
        optimizer = super().create_optimizer(model)
        factor, experts = self.sft.expert_learning_rate_factor, low_rank_parameters(self.model)
        if factor == 1.0 or not experts:
            return optimizer
        for group in list(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in experts]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in experts]
            if own:
                optimizer.add_param_group({**group, "params": own, "lr": group["lr"] * factor})
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of one forward pass each; accelerate gives every n-th to each of n processes."""
        loader = DataLoader(
            self.train_dataset, batch_size=self.sft.micro_batch_size, sampler=self.order, collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory)
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device,
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """This process's batches of one optimizer step, and the response tokens of all processes' batches."""
        batches = list(islice(epoch_iterator, num_batches))
        responses = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
        passes = sum(bool(batch["token_mask"].any()) for batch in batches)
        tokens = sum(int(batch["token_mask"].sum()) for batch in batches)
        totals = summed(torch.tensor([responses, passes, tokens]))
        self._pass = 0
        if self.terms:
            self.terms.begin_step(self.state.global_step + 1, int(totals[1]), int(totals[2]), int(totals[0]))
        return batches, totals[0].to(device)

    def compute_loss(  # type: ignore[override]
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Response negative log-likelihood per token of the whole batch, plus the routers' terms.

        It is multiplied by the number of processes, because their gradients (and losses, for the curve) are averaged.
        """
        assert num_items_in_batch is not None and not return_outputs
        self._seed_noise()
        if self.terms:
            self.terms.begin_pass(inputs["labels"])
        loss = response_loss(self.model, inputs, forward=model) / num_items_in_batch
        token_mask_T = inputs["token_mask"].reshape(-1)
        self._tokens += int(token_mask_T.sum())
        if self.terms:
            step = self.state.global_step + 1
            is_shown = step % self.args.logging_steps == 0 or step in (1, self.args.max_steps)
            loss = loss + self.terms.loss(take_routings(self.model), token_mask_T, is_shown).to(loss.dtype)
        return loss * self.processes

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        """Do not defer to the last micro batch of a step: each process would keep all gradients until then. (The Trainer's own
        method needs a configuration that only transformers' own sharding sets.)"""
        return nullcontext()

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        if self.processes == 1:
            super()._move_model_to_device(model, device)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        norm = super()._get_grad_norm(model, grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a point of the curves, with the routers' terms separate from the loss. Every process must call it."""
        if "loss" in logs:
            point: dict[str, float] = {name: float(logs[name]) for name in CURVES if name in logs}
            if not math.isfinite(point["loss"]):
                raise TrainingFailed(
                    f"The loss is {point['loss']} at step {self.state.global_step}. The last checkpoint before it is kept. "
                    "Lower sft.learning_rate, set sft.max_grad_norm to 1, or use sft.precision: bf16_mixed.")
            tokens = int(summed(torch.tensor(self._tokens)))
            if self.terms:
                of_routers, added = self.terms.take_values()
                point |= of_routers
                point["loss"] -= added
            point |= {"tokens_per_second": self._speed(tokens), "epoch": self.state.global_step / self.steps_of_epoch}
            self._tokens = 0
            values = CurveValues.from_flat(point)
            assert not values.others, f"CurveValues has no fields for {sorted(values.others)}"
            if is_first():
                self.metrics.log(self.state.global_step, values.flat())
            self.watch.add(self.state.global_step, values)
            self.watch.stop_for(self.checks)
            self._show(f"loss {point['loss']:.4f}, {point['tokens_per_second']:.0f} tokens/s")
        super().log(logs, start_time)

    def _seed_noise(self) -> None:
        """Make the random numbers of this forward pass (the router's noise, dropout) depend only on its place in the training:
        they are the same in any process, and after a restart."""
        number = self._pass * self.processes + process_number()
        self._pass += 1
        digest = hashlib.sha256(f"{self.args.seed}/{self.state.global_step}/{number}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _show(self, detail: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(detail)
        else:
            logger.info(describe_progress("sft", self.state.global_step, self.state.max_steps, detail))

    def _speed(self, tokens: float) -> float:
        now = time.monotonic()
        speed = tokens / max(now - self._time_at_log, 1e-9)
        self._time_at_log = now
        return speed

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the full weights. Not with save_pretrained, which renames some families' tensors and would call the MoE a dense
        model."""
        weights = whole_weights(self.model)
        if is_first():
            directory = Path(output_dir or self.args.output_dir)
            directory.mkdir(parents=True, exist_ok=True)
            save_file(weights, directory / WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Nothing to load: this happened before the model was sharded."""

    # The Trainer would write and read these as pickles: see optimizer_state.py.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.average:
            self.average.save(Path(output_dir))
        state = whole_optimizer_state(self.optimizer)
        if is_first():
            save_state(Path(output_dir), "optimizer", state)
            save_state(Path(output_dir), "scheduler", self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with _fits(checkpoint):
                load_optimizer_state(self.optimizer, load_state(Path(checkpoint), "optimizer"))
                self.lr_scheduler.load_state_dict(load_state(Path(checkpoint), "scheduler"))
                if self.average:
                    self.average.load(self.model, Path(checkpoint))

    def _save_scaler(self, output_dir: str) -> None:
        assert getattr(self.accelerator, "scaler", None) is None, "no precision of ours needs a gradient scaler"

    def _load_scaler(self, checkpoint: str | None) -> None:
        assert getattr(self.accelerator, "scaler", None) is None, "no precision of ours needs a gradient scaler"

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing to save: see _seed_noise."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing to load: see _seed_noise."""


@contextmanager
def _fits(checkpoint: str) -> Iterator[None]:
    """Turn torch's errors for the state of another model or optimizer into a CheckpointError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{checkpoint!r} cannot be resumed: it belongs to other work ({reason}). Remove it to start from the previous "
            "checkpoint, or from the beginning.") from None


def low_rank_parameters(model: torch.nn.Module) -> set[int]:
    """Ids of the parameters that low-rank experts add to their shared weights."""
    return {id(parameter) for block in moe_blocks(model) if isinstance(block.experts, LowRankExperts)
            for parameter in block.experts.parameters()}


def training_arguments(sft: SftConfig, seed: int, directory: Path, num_sequences: int) -> TrainingArguments:
    """The Trainer's arguments for a recipe section. ``num_sequences`` are those of one epoch."""
    accumulation = sft.batch_size // sft.micro_batch_size // number_of_processes()
    by_epochs = math.ceil(math.ceil(num_sequences / sft.batch_size) * sft.epochs)
    total_steps = min(by_epochs, sft.max_steps or by_epochs)
    arguments = TrainingArguments(
        output_dir=str(directory), max_steps=total_steps,
        per_device_train_batch_size=sft.micro_batch_size, gradient_accumulation_steps=accumulation,
        learning_rate=sft.learning_rate, warmup_steps=min(sft.warmup_steps, total_steps // 10),
        lr_scheduler_type=sft.schedule, optim="adafactor" if sft.optimizer == "adafactor" else "adamw_torch",
        weight_decay=sft.weight_decay, max_grad_norm=sft.max_grad_norm, bf16=sft.precision == "bf16_mixed",
        activation_checkpointing=sft.gradient_checkpointing, activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=sft.log_steps, logging_first_step=True, save_strategy="steps",
        # A resumed run then begins a log interval where an uninterrupted one does, and their curves are equal.
        save_steps=math.ceil(sft.checkpoint_steps / sft.log_steps) * sft.log_steps,
        save_total_limit=2, seed=seed, report_to="none", disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=torch.cuda.is_available(), logging_nan_inf_filter=False,
        use_cpu=not torch.cuda.is_available())
    arguments._n_gpu = min(1, arguments.n_gpu)  # several visible GPUs must not become DataParallel: use torchrun for them
    return arguments


def put_weights(model: PreTrainedModel, weights: Path) -> None:
    """Load the weights in a file of a checkpoint into ``model``, which is not sharded. Raises CheckpointError if they belong to
    another model."""
    with _fits(str(weights)):
        load_weights(model, str(weights))


def train(
    model: PreTrainedModel, data: PackedRows, sft: SftConfig, seed: int, directory: Path, metrics: MetricsLog,
    checks: ChecksConfig, snapshots: int = 0, trainer: Callable[..., XftTrainer] = XftTrainer,
) -> TrainingMetrics | None:
    """Train ``model`` in place, continuing from the last checkpoint in ``directory`` if there is one.

    ``snapshots``: number of steps whose weights are kept (see snapshots.py); ``trainer``: creates a trainer with another loss.
    If there are several processes, all must call it. Each ends with its part of the model; the last checkpoint, that of the
    last step, has all of it.
    Returns steps, mean tokens per second over the curve's points, the loss of the last log interval, and what was noticed in
    training (see checks.TrainingWatch); None in all but the first of several processes.
    Raises TrainingFailed if the loss is no longer a number, RunWentWrong for a problem at which ``checks`` says to stop.
    """
    step = step_to_go_on_from(directory, metrics, "sft")
    checkpoint = directory / f"{PREFIX}{step}"
    if step:
        put_weights(model, checkpoint / WEIGHTS_NAME)
        restore_snapshots(checkpoint, directory)
    training = trainer(model, data, sft, seed, directory, metrics, checks, snapshots)
    if step < training.args.max_steps:  # otherwise killed after the last step: the Trainer would do one more
        training.train(resume_from_checkpoint=str(checkpoint) if step else None)
        # bf16_mixed leaves the model wrapped in autocast, but the next measurements are of the model as it is saved.
        training.accelerator.unwrap_model(training.model, keep_fp32_wrapper=False)
    if not is_first():
        return None
    points = [point.values for point in read_curve(metrics.path)]
    losses = [values.loss for values in points if values.loss is not None]
    speeds = [values.tokens_per_second for values in points if values.tokens_per_second is not None]
    return TrainingMetrics(
        steps=training.args.max_steps, train_loss=losses[-1], tokens_per_second=sum(speeds) / len(speeds),
        **dict(training.watch.found()))
