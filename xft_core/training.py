"""transformers.Trainer with the router's balance loss, curves on disk, and checkpoints that are whole or not there."""

import logging
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from xft_core.checks import TrainingWatch
from xft_core.config import ChecksConfig, SftConfig
from xft_core.data.packing import PackedRows
from xft_core.errors import CheckpointError, XftError
from xft_core.held_out import take_routings
from xft_core.models import moe_blocks
from xft_core.moe.balance import RouterStatistics, balance_loss
from xft_core.progress import describe_progress, on_terminal
from xft_core.response_loss import response_loss
from xft_core.seals import newest_whole, seal, step_of
from xft_core.state_files import load_state, save_state
from xft_core.tracking import MetricsLog, read_metrics

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
CURVES = ["loss", "learning_rate", "grad_norm"]


class TrainingFailed(XftError):
    """The loss is no number any more."""


class XftTrainer(Trainer):
    """One code path for dense models and for the MoE; only the latter has routers to balance."""

    def __init__(self, model: PreTrainedModel, data: PackedRows, sft: SftConfig, seed: int, directory: Path,
                 metrics: MetricsLog, checks: ChecksConfig) -> None:
        self.sft, self.metrics, self.directory, self.checks = sft, metrics, directory, checks
        self.watch = TrainingWatch(read_metrics(metrics.path))
        self.blocks = moe_blocks(model)
        self.tokens_seen = 0
        self._tokens_at_log, self._time_at_log = 0, time.monotonic()
        self._balance_sum, self._balance_count = 0.0, 0
        self._statistics: RouterStatistics | None = None
        super().__init__(
            model=model, args=training_arguments(sft, seed, directory, len(data)), train_dataset=data,
            data_collator=data.collate, callbacks=[_Checkpoints(metrics)])
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        self.bar = tqdm(unit="step", desc="sft") if on_terminal() else None
        if self.bar is not None:
            self.add_callback(_Bar(self.bar))

    def compute_loss(  # type: ignore[override]
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Response negative log-likelihood per token of the whole batch, plus the weighted balance loss."""
        assert num_items_in_batch is not None and not return_outputs
        for block in self.blocks:
            block.keep_routing = True
        loss = response_loss(self.model, inputs, forward=model) / num_items_in_batch
        token_mask_T = inputs["token_mask"].reshape(-1)
        self.tokens_seen += int(token_mask_T.sum())
        if self.blocks:
            loss = loss + self._balance(token_mask_T).to(loss.dtype)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a point of the curves; the balance loss stands beside the loss, not in it."""
        if "loss" in logs:
            point: dict[str, float] = {name: float(logs[name]) for name in CURVES if name in logs}
            if not math.isfinite(point["loss"]):
                raise TrainingFailed(
                    f"The loss is {point['loss']} at step {self.state.global_step}. The last checkpoint before it is kept. "
                    "Lower sft.learning_rate, set sft.max_grad_norm to 1, or use sft.precision: bf16_mixed.")
            if self._balance_count:
                point["balance_loss"] = self._balance_sum / self._balance_count
                point["loss"] -= self.sft.balance_loss_weight * point["balance_loss"]
                self._balance_sum, self._balance_count = 0.0, 0
            if self._statistics and self._statistics.tokens:
                point |= self._statistics.summary()
            self._statistics = None
            point |= {"tokens_per_second": self._speed(), "epoch": float(self.state.epoch or 0)}
            self.metrics.log(self.state.global_step, point)
            self.watch.add(self.state.global_step, point)
            self.watch.stop_for(self.checks)
            self._show(f"loss {point['loss']:.4f}, {point['tokens_per_second']:.0f} tokens/s")
        super().log(logs, start_time)

    def _balance(self, token_mask_T: torch.Tensor) -> torch.Tensor:
        routings = take_routings(self.model)
        upcycle = self.blocks[0].router.upcycle
        next_step = self.state.global_step + 1
        if next_step % self.args.logging_steps == 0 or next_step in (1, self.args.max_steps):
            if self._statistics is None:
                self._statistics = RouterStatistics(len(self.blocks), upcycle.num_experts, upcycle.shared_expert)
            self._statistics.add(routings, token_mask_T)
        balance = balance_loss(routings, token_mask_T, upcycle.shared_expert, self.sft.balance_loss_reduction)
        self._balance_sum += float(balance.detach())
        self._balance_count += 1
        return balance * (self.sft.balance_loss_weight / self.current_gradient_accumulation_steps)

    def _show(self, detail: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(detail)
        else:
            logger.info(describe_progress("sft", self.state.global_step, self.state.max_steps, detail))

    def _speed(self) -> float:
        now, tokens = time.monotonic(), self.tokens_seen
        speed = (tokens - self._tokens_at_log) / max(now - self._time_at_log, 1e-9)
        self._time_at_log, self._tokens_at_log = now, tokens
        return speed

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Not save_pretrained: it renames some families' tensors on the way out, and would call the MoE a dense model.
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, str(directory / WEIGHTS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        with _fits(resume_from_checkpoint):
            load_weights(model or self.model, str(Path(resume_from_checkpoint) / WEIGHTS_NAME))

    # The Trainer would write these as pickles, and read them back as such: see state_files.py.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            save_state(Path(output_dir), "optimizer", self.optimizer.state_dict())
            save_state(Path(output_dir), "scheduler", self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with _fits(checkpoint):
                self.optimizer.load_state_dict(load_state(Path(checkpoint), "optimizer"))
                self.lr_scheduler.load_state_dict(load_state(Path(checkpoint), "scheduler"))

    def _save_scaler(self, output_dir: str) -> None:
        assert getattr(self.accelerator, "scaler", None) is None, "no precision of ours needs a gradient scaler"

    def _load_scaler(self, checkpoint: str | None) -> None:
        assert getattr(self.accelerator, "scaler", None) is None, "no precision of ours needs a gradient scaler"

    def _save_rng_state(self, output_dir: str) -> None:
        name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
        state = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "cpu": torch.random.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.random.get_rng_state()
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_state(Path(output_dir), self._random_name(), state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with _fits(checkpoint):
            state = load_state(Path(checkpoint), self._random_name())
            name, keys, *rest = state["numpy"]
            random.setstate(state["python"])
            np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
            torch.random.set_rng_state(state["cpu"])
            if torch.cuda.is_available() and "cuda" in state:
                torch.cuda.random.set_rng_state(state["cuda"])

    def _random_name(self) -> str:
        return "random" if self.args.world_size <= 1 else f"random_{self.args.process_index}"


@contextmanager
def _fits(checkpoint: str) -> Iterator[None]:
    """Turn what torch raises for state of another model or optimizer into a CheckpointError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{checkpoint!r} cannot be gone on from: it is not of this work ({reason}). Remove it to start from the one "
            "before, or from the beginning.") from None


class _Checkpoints(TrainerCallback):
    """Puts the curves so far into a checkpoint, and seals it once all of it is written."""

    def __init__(self, metrics: MetricsLog) -> None:
        self.metrics = metrics

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.metrics.copy_to(directory)
        seal(directory)


class _Bar(TrainerCallback):
    """A progress bar of optimizer steps on a terminal."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.reset(total=state.max_steps)
        self.bar.update(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(1)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()


def training_arguments(sft: SftConfig, seed: int, directory: Path, num_sequences: int) -> TrainingArguments:
    """The Trainer's arguments for a recipe section. ``num_sequences`` are those of one epoch."""
    accumulation = sft.batch_size // sft.micro_batch_size
    by_epochs = math.ceil(math.ceil(math.ceil(num_sequences / sft.micro_batch_size) / accumulation) * sft.epochs)
    total_steps = min(by_epochs, sft.max_steps or by_epochs)
    arguments = TrainingArguments(
        output_dir=str(directory), max_steps=total_steps,
        per_device_train_batch_size=sft.micro_batch_size, gradient_accumulation_steps=accumulation,
        learning_rate=sft.learning_rate, warmup_steps=min(sft.warmup_steps, total_steps // 10),
        lr_scheduler_type=sft.schedule, optim="adafactor" if sft.optimizer == "adafactor" else "adamw_torch",
        weight_decay=sft.weight_decay, max_grad_norm=sft.max_grad_norm, bf16=sft.precision == "bf16_mixed",
        activation_checkpointing=sft.gradient_checkpointing, activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=sft.log_steps, logging_first_step=True, save_strategy="steps",
        # A resumed run then begins a log interval where the undisturbed one does: their curves are equal.
        save_steps=math.ceil(sft.checkpoint_steps / sft.log_steps) * sft.log_steps,
        save_total_limit=2, seed=seed, data_seed=seed, report_to="none", disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=torch.cuda.is_available(), logging_nan_inf_filter=False,
        use_cpu=not torch.cuda.is_available())
    arguments._n_gpu = min(1, arguments.n_gpu)  # several visible GPUs must not become DataParallel: torchrun is for those
    return arguments


def train(
    model: PreTrainedModel, data: PackedRows, sft: SftConfig, seed: int, directory: Path, metrics: MetricsLog,
    checks: ChecksConfig,
) -> dict[str, float]:
    """Train ``model`` in place, going on from the last checkpoint in ``directory`` if there is one.

    Returns steps, tokens per second in the mean over the curve's points, the loss of the last log interval, and what
    was noticed on the way (see checks.TrainingWatch).
    Raises TrainingFailed when the loss is no number any more, RunWentWrong for what ``checks`` says to stop for.
    """
    checkpoint = newest_whole(directory)
    step = step_of(checkpoint) if checkpoint else 0
    if checkpoint:
        logger.info("sft: going on from step %d", step)
        metrics.restore_from(checkpoint)
    metrics.forget_after(step)
    trainer = XftTrainer(model, data, sft, seed, directory, metrics, checks)
    if checkpoint and step >= trainer.args.max_steps:  # killed after the last step: the Trainer would do one more
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        # bf16_mixed leaves the model wrapped in autocast; what is measured next is the model as it is saved.
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    points = [point["metrics"] for point in read_metrics(metrics.path) if "loss" in point["metrics"]]
    return {
        "steps": trainer.args.max_steps, "train_loss": points[-1]["loss"],
        "tokens_per_second": sum(point["tokens_per_second"] for point in points) / len(points),
        **trainer.watch.metrics()}
