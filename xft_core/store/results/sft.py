"""Results of the sft stage, and of a training in general."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Metrics, Result, ResultFile


class WatchedTraining(Metrics):
    """Findings made while a model trained (see recipe/checks.py)."""

    dead_expert_steps: int | None = Field(description=(
        "Longest run of steps in which some layer had a routed expert with hardly any load [count]"))
    diverged_at_step: int | None = Field(description=(
        "Step at which the training loss had risen far above its lowest point; absent if it did not [count]"))


class TrainingMetrics(WatchedTraining):
    """Measurements of the training itself."""

    steps: int = Field(description="Optimizer steps of the whole training [count]")
    train_loss: float | None = Field(description="Training loss of the last logging interval [nats per response token]")
    tokens_per_second: float | None = Field(description="Mean training speed over the curve's points [tokens per second]")


class SftMetrics(TrainingMetrics):
    """Numbers of supervised fine-tuning. Those of the router exist only for a Mixture-of-Experts, on held-out rows."""

    held_out_nll_before: float | None = Field(description="Held-out loss before training [nats per response token]")
    held_out_nll: float | None = Field(description="Held-out loss after training [nats per response token]")
    held_out_tokens: int | None = Field(description="Response tokens of the held-out rows [count]")
    held_out_nll_average: float | None = Field(None, description=(
        "Held-out loss of the average of the weights; absent if there is no average [nats per response token]"))
    peak_memory_mb: float | None = Field(description="Largest resident memory of the first process [MiB]")
    peak_device_memory_mb: float | None = Field(description="Largest memory allocated on the accelerator [MiB]")
    router_entropy: float | None = Field(description="Entropy of the router, mean over layers [nats]")
    expert_load_min: float | None = Field(description="Smallest share of the routed tokens of any expert [fraction, 0 to 1]")
    expert_load_max: float | None = Field(description="Largest share of the routed tokens of any expert [fraction, 0 to 1]")
    mean_shared_weight: float | None = Field(description=(
        "Routing weight of the shared expert, mean over layers; absent without a shared expert [fraction, 0 to 1]"))
    shared_weight_spread: float | None = Field(None, description=(
        "Standard deviation over tokens of the shared expert's weight, mean over layers [fraction, 0 to 1]"))
    mean_active_experts: float | None = Field(None, description=(
        "Experts per token, including the shared one, mean over layers [count]"))
    expert_delta_cosine: float | None = Field(None, description=(
        "Cosine between two experts' weight differences from the shared expert (or from the start, without one), mean over "
        "pairs and layers; 1: all learned the same [no unit]"))


class LayerRouting(Result):
    """The routing of one layer, averaged over the tokens of the held-out rows."""

    load: list[float] = Field(description="Share of all choices for each routed expert, sum 1 [fraction, 0 to 1]")
    entropy: float = Field(description="Entropy of the router [nats]")
    mean_shared_weight: float | None = Field(description=(
        "Routing weight of the shared expert; null without a shared expert [fraction, 0 to 1]"))
    mean_weights: list[float] = Field([], description=(
        "Routing weight of each expert, starting with the shared one if there is one [fraction, 0 to 1]"))
    shared_weight_spread: float | None = Field(None, description=(
        "Standard deviation over tokens of the shared expert's weight; absent with the paper's routing [fraction, 0 to 1]"))
    mean_active: float | None = Field(None, description=(
        "Experts per token, including the shared one; absent with the paper's routing [count]"))


class TokenClassWeight(Result):
    """The shared expert's weight on one class of tokens (data/token_classes.py), in the responses of held-out rows."""

    name: str = Field(description="The class: keyword, identifier, string, comment, number or operator, prose [text]")
    tokens: int = Field(description="Tokens of the class that were measured [count]")
    mean: list[float] = Field(description="Mean of the shared expert's routing weight, by layer [fraction, 0 to 1]")
    spread: list[float] = Field(description="Standard deviation of this weight over tokens, by layer [fraction, 0 to 1]")


class RouterFile(ResultFile):
    """router.json of a tuned Mixture-of-Experts."""

    file_name: ClassVar[str] = "router.json"
    layers: list[LayerRouting] = Field(description="The layers in the model's order")
    token_classes: list[TokenClassWeight] = Field([], description=(
        "Weight of the shared expert by token class; empty without a shared expert"))
