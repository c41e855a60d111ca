"""Callbacks around an optimizer step: the order of the data, routers, averages, snapshots, checkpoints, a progress bar."""

from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from xft_core.data.order import SeededOrder
from xft_core.errors import RecipeError
from xft_core.moe.averaging import averaging_share, pull_together
from xft_core.moe.experts import MoeBlock, RoutedExperts
from xft_core.recipe.sections import SftConfig
from xft_core.runtime.group import is_first
from xft_core.store.checkpoints import PREFIX, seal
from xft_core.store.curves import MetricsLog
from xft_core.training.averaging import RunningAverage
from xft_core.training.router_terms import RouterTerms
from xft_core.training.snapshots import Snapshots


class Epochs(TrainerCallback):
    """Tells the order of the data the current epoch, also after a restart."""

    def __init__(self, order: SeededOrder, steps_of_epoch: int) -> None:
        self.order, self.steps_of_epoch = order, steps_of_epoch

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.order.epoch = state.global_step // self.steps_of_epoch


class Routers(TrainerCallback):
    """Lets routers update themselves after a step, before its checkpoint is written."""

    def __init__(self, terms: RouterTerms | None) -> None:
        self.terms = terms

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.terms:
            self.terms.end_step()


class Checkpoints(TrainerCallback):
    """Puts the curves so far into a checkpoint, and seals it once it is complete."""

    def __init__(self, metrics: MetricsLog, snapshots: Snapshots) -> None:
        self.metrics, self.snapshots = metrics, snapshots

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if is_first():
            directory = Path(args.output_dir) / f"{PREFIX}{state.global_step}"
            self.metrics.copy_to(directory)
            self.snapshots.copy_to(directory, state.global_step)
            seal(directory)


class AfterStep(TrainerCallback):
    """Changes or records the weights after each optimizer step, before they are saved."""

    def __init__(
        self, experts: list[RoutedExperts], sft: SftConfig, average: RunningAverage | None, snapshots: Snapshots,
    ) -> None:
        self.experts, self.sft, self.average, self.snapshots = experts, sft, average, snapshots

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **_: Any,
    ) -> None:
        for experts in self.experts:
            pull_together(experts, averaging_share(self.sft.expert_averaging, state.global_step, state.max_steps))
        if self.average:
            self.average.add(model, state.global_step)
        self.snapshots.take(model, state.global_step)


def experts_to_average(blocks: list[MoeBlock]) -> list[RoutedExperts]:
    """The experts of all blocks. Raises RecipeError for experts whose mean does not have their form."""
    experts = [block.experts for block in blocks]
    if not all(type(item) is RoutedExperts and item.num_experts > 1 for item in experts):
        raise RecipeError(
            "sft.expert_averaging is set, but the experts of this model have no full weights of their own, or there is only "
            "one: the mean of low-rank experts does not have their low rank. Set sft.expert_averaging to 0, or upcycle to full "
            "experts.")
    return experts


class ProgressBar(TrainerCallback):
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
