"""The recipe section sft."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Precision, Section, WeightAverage
from xft_core.recipe.sections.upcycle import ASSIGNED, UpcycleConfig

Adapter = Literal["none", "lora", "qlora"]
# Router fields, at the values that have no effect on a dense model.
OF_ROUTERS = {
    "balance_loss_weight": 0.0, "balance_loss_reduction": "sum", "balance": "loss", "balance_scope": "micro_batch",
    "router_gradient": "chosen", "gate_budget_weight": 1.0, "router_entropy_weight": 0.001, "diversity_weight": 0.0,
    "score_variance_weight": 0.0}


class SftConfig(Section):
    """Supervised fine-tuning of the MoE and, unless section baseline differs, of the dense model."""

    added: ClassVar[frozenset[str]] = frozenset(OF_ROUTERS) - {"balance_loss_weight", "balance_loss_reduction"} | {
        "average", "average_count", "expert_averaging", "merge_at", "merge_checkpoints", "expert_learning_rate_factor",
        "adapter", "adapter_rank", "adapter_alpha", "adapter_export"}

    epochs: float = Field(4.0, gt=0, le=1000, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps; empty for no limit.")
    batch_size: int = Field(64, ge=1, description="Sequences per optimizer step (packed sequences when packing).")
    micro_batch_size: int = Field(8, ge=1, description=(
        "Sequences per forward pass. Must divide batch_size; lower it when memory is short. The balance loss and the "
        "router's noise are computed per forward pass, so this value slightly changes the result of a Mixture-of-Experts. "
        "The number of processes does not: each process draws the same noise that a single process would draw for those "
        "sequences."))
    learning_rate: float = Field(5e-5, gt=0, le=1, description="Peak learning rate.")
    warmup_steps: int = Field(500, ge=0, description="Optimizer steps of linear warm-up (at most a tenth of all steps).")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate schedule after warm-up.")
    optimizer: Literal["adafactor", "adamw"] = Field("adafactor", description="Adafactor (the paper's) or AdamW.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay.")
    max_grad_norm: float = Field(0.0, ge=0, description="Clip the gradient norm at this value; 0 for no clipping.")
    precision: Precision = Field("bf16", description=(
        "bf16 (weights and arithmetic, the paper's), bf16_mixed (fp32 weights, bf16 arithmetic) or fp32."))
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass to save memory.")
    packing: bool = Field(True, description=(
        "Pack several examples into one sequence, without attention between them; off: one example per sequence. Always off "
        "for families whose attention cannot keep examples apart (opt, bloom, falcon); the log says so."))
    balance_loss_weight: float = Field(0.01, ge=0, description=(
        "Weight of the router's balance loss; 0 for none. Plays no part with sft.balance bias, nor with an upcycle.router "
        "that learns nothing."))
    balance_loss_reduction: Literal["sum", "mean"] = Field("sum", description=(
        "How the balance loss is combined over layers: sum (the reference's; grows with depth) or mean. Plays no part where "
        "balance_loss_weight plays none."))
    checkpoint_steps: int = Field(200, ge=1, description="Optimizer steps between checkpoints to resume from.")
    log_steps: int = Field(10, ge=1, description="Optimizer steps between two points of the training curves.")
    num_processes: int = Field(1, ge=1, le=64, description=(
        "Processes per machine that train, and learn the mixing coefficients, together: one for each accelerator (or share "
        "of the cores). They split batch_size, so micro_batch_size times the number of all processes must divide it. "
        "Weights, gradients and optimizer state are split too. Plays no part in the result, apart from rounding."))
    num_nodes: int = Field(1, ge=1, le=64, description=(
        "Machines that train together. More than one needs a shared file system and the setting XFT_RENDEZVOUS, see "
        "docs/how-to/several-gpus.md. Plays no part in the result, which equals that of one process apart from rounding."))
    average: WeightAverage = Field("none", description=(
        "Average the Mixture-of-Experts over its training, then mix and merge the average: last_k (mean of the last "
        "average_count of checkpoints spaced evenly over the last 40% of the steps), ema (exponential moving average with "
        "decay 1 - 1/(0.1 steps), bias-corrected) or none (use the last step). For the baseline, set baseline.average."))
    average_count: int = Field(5, ge=1, le=1000, description=(
        "Checkpoints that last_k averages. Plays no part in other averages."))
    expert_averaging: float = Field(0.0, ge=0, le=1, description=(
        "Expert weight averaging during training (EWA, arXiv 2308.06093): after each optimizer step, every routed expert "
        "moves by this share towards the mean of the others. The share rises linearly from 0 to this value. 0 for none; "
        "0.001 to 0.01 are usual. With bf16 weights, small shares are lost in rounding: use precision bf16_mixed or fp32."))
    merge_at: Literal["last", "best"] = Field("last", description=(
        "Which step of the Mixture-of-Experts is mixed and merged: last, or best, the one of merge_checkpoints evenly spaced "
        "steps whose uniform merge has the lowest loss on data.reserved_rows."))
    merge_checkpoints: int = Field(4, ge=2, le=64, description=(
        "Number of steps that merge_at best chooses from, including the last. Plays no part with merge_at last."))

    balance: Literal["loss", "bias"] = Field("loss", description=(
        "How the experts are kept evenly used. loss: by the balance loss; bias: experts are chosen by s + b and weighted by "
        "s, and b moves by 0.001 towards equal load after each step (arXiv 2408.15664), without a gradient."))
    balance_scope: Literal["micro_batch", "step"] = Field("micro_batch", description=(
        "Scope of the balance loss: each forward pass separately, or the optimizer step so far, which lets a sequence use "
        "few experts (arXiv 2501.11873). Plays no part where balance_loss_weight plays none."))
    router_gradient: Literal["chosen", "dense"] = Field("chosen", description=(
        "chosen: the router learns only from the experts that process a token. dense: it learns as if all experts had "
        "processed the token. This costs a forward pass through all routed experts and changes nothing else in the step."))
    gate_budget_weight: float = Field(1.0, ge=0, description=(
        "Weight of (mean of m - m*)^2 over the step's response tokens, where m* rises from 0.4 to 1 times "
        "upcycle.shared_gate_start in the first third of the steps; a tenth of the weight afterwards. Plays no part unless "
        "upcycle.shared_gate is token."))
    router_entropy_weight: float = Field(0.001, ge=0, description=(
        "Weight of the router's mean entropy after the first tenth of the steps, so that the sets of active experts shrink. "
        "Plays no part unless upcycle.routing is top_p."))
    diversity_weight: float = Field(0.0, ge=0, description=(
        "Weight of the mean squared cosine between the contributions of a token's routed experts beyond the shared one, on "
        "at most 256 response tokens of a step, after the first tenth of the steps; 0 for none. Makes experts differ, which "
        "may hurt the merged model."))
    score_variance_weight: float = Field(0.0, ge=0, description=(
        "Weight of minus the variance of s over experts, on the same tokens and from the same step on; 0 for none."))
    expert_learning_rate_factor: float = Field(1.0, gt=0, le=1000, description=(
        "Learning rate of the A and B (and biases) of low-rank experts, as a multiple of learning_rate. Plays no part "
        "without upcycle.expert_rank."))

    adapter: Adapter = Field("none", description=(
        "lora: train low-rank adapters (LoRA, arXiv 2106.09685) instead of weights. In a dense model, all linear layers of "
        "the decoder get adapters. In a Mixture-of-Experts, attention does, while experts and routers are trained directly. "
        "Embeddings, norms and head stay frozen. At the end, the adapters are added to the weights. qlora is rejected: see "
        "docs/explanation/options/adapters.md."))
    adapter_rank: int = Field(16, ge=1, le=4096, description="Rank r of the adapters. Plays no part without sft.adapter.")
    adapter_alpha: float = Field(32.0, gt=0, le=1e6, description=(
        "The adapters' output is scaled by adapter_alpha / adapter_rank. Plays no part without sft.adapter."))
    adapter_export: bool = Field(False, description=(
        "Also write the adapters separately (adapter/), for use with PEFT on top of the model that was tuned. Plays no part "
        "without sft.adapter."))

    @model_validator(mode="after")
    def _adapters_fit(self) -> "SftConfig":
        if self.adapter == "qlora":
            raise ValueError(
                "adapter is qlora, which keeps the weights in 4 bits: this needs the CUDA kernels of bitsandbytes, and there "
                "are no such kernels for training on a CPU. Use lora; in bf16, each weight takes 2 bytes")
        if self.adapter == "lora" and self.num_processes * self.num_nodes > 1:
            raise ValueError(
                f"adapter is lora, but training is split over {self.num_processes * self.num_nodes} processes, which requires "
                "that all weights are trained: set num_processes and num_nodes to 1, or adapter to none")
        if self.adapter == "lora" and (self.average != "none" or self.merge_at == "best"):
            raise ValueError(
                "adapter is lora, but average or merge_at needs the weights of earlier steps, for which only the adapters "
                "are stored: set average to none and merge_at to last")
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> "SftConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) does not divide batch_size ({self.batch_size})")
        processes = self.num_processes * self.num_nodes
        if self.batch_size % (self.micro_batch_size * processes):
            fitting = [size for size in range(1, self.micro_batch_size) if self.batch_size % (size * processes) == 0]
            advice = (
                f"a micro_batch_size of {fitting[-1]} does" if fitting
                else f"use a batch_size that is a multiple of {processes}, or fewer processes")
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) times {processes} processes does not divide batch_size "
                f"({self.batch_size}): {advice}")
        return self

    def conflict_with(self, upcycle: UpcycleConfig) -> str | None:
        """Explain to the user why a Mixture-of-Experts of ``upcycle`` cannot be trained like this; None if it can."""
        routed = upcycle.num_experts_per_tok - int(upcycle.shared_expert)
        if self.balance == "bias" and upcycle.router in ASSIGNED:
            return (f"sft.balance is bias, but upcycle.router is {upcycle.router}, which chooses experts without "
                    "probabilities: use sft.balance loss")
        if self.balance == "bias" and upcycle.is_stock:
            return (f"sft.balance is bias, but upcycle.normalization is {upcycle.normalization}, an architecture whose router "
                    "has no bias: use sft.balance loss")
        if self.expert_averaging and upcycle.expert_rank is not None:
            return (f"sft.expert_averaging is {self.expert_averaging:g}, but experts are low-rank (upcycle.expert_rank), and "
                    "the mean of their factors is not the mean of the experts: set it to 0")
        if upcycle.groups is not None and (self.balance == "bias" or self.router_gradient == "dense"):
            return (f"sft.balance is {self.balance} and sft.router_gradient is {self.router_gradient}, but experts in groups "
                    "(upcycle.groups) support only balance loss and router_gradient chosen")
        learns = upcycle.router == "learned"
        if self.router_gradient == "dense" and not learns and (upcycle.shared_gate != "token" or not upcycle.shared_expert):
            return (f"sft.router_gradient is dense, but upcycle.router is {upcycle.router}, so nothing could learn from it: "
                    "use router_gradient chosen")
        if self.diversity_weight and routed < 2:
            return ("sft.diversity_weight compares the routed experts of a token, but there is only one: raise "
                    "upcycle.num_experts_per_tok, or set the weight to 0")
        if self.score_variance_weight and not learns:
            return (f"sft.score_variance_weight needs a router that learns, but upcycle.router is {upcycle.router}: set the "
                    "weight to 0")
        return None
