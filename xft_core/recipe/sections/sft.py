"""The recipe's section sft."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Precision, Section


class SftConfig(Section):
    """Supervised fine-tuning, of the MoE and (see baseline) of the dense model."""

    added: ClassVar[frozenset[str]] = frozenset({"expert_learning_rate_factor"})

    epochs: float = Field(4.0, gt=0, le=1000, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps; empty for no limit.")
    batch_size: int = Field(64, ge=1, description="Sequences per optimizer step (packed sequences when packing).")
    micro_batch_size: int = Field(8, ge=1, description=(
        "Sequences per forward pass. Must divide batch_size; lower it when memory is short. (The balance loss and the "
        "router's noise are per forward pass: for a Mixture-of-Experts the result differs a little. Not by the number of "
        "processes: each draws the noise that one process would have drawn for the same sequences.)"))
    learning_rate: float = Field(5e-5, gt=0, le=1, description="Peak learning rate.")
    warmup_steps: int = Field(500, ge=0, description="Optimizer steps of linear warm-up (at most a tenth of all steps).")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Learning rate after warm-up.")
    optimizer: Literal["adafactor", "adamw"] = Field("adafactor", description="Adafactor (the paper's) or AdamW.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay.")
    max_grad_norm: float = Field(0.0, ge=0, description="Clip the gradient's norm at this value; 0 for no clipping.")
    precision: Precision = Field("bf16", description=(
        "bf16 (weights and arithmetic, the paper's), bf16_mixed (fp32 weights, bf16 arithmetic) or fp32."))
    gradient_checkpointing: bool = Field(False, description="Compute activations twice to save memory.")
    packing: bool = Field(True, description=(
        "Pack several examples into one sequence without attention between them; off: one example per sequence."))
    balance_loss_weight: float = Field(0.01, ge=0, description="Weight of the router's balance loss; 0 for none.")
    balance_loss_reduction: Literal["sum", "mean"] = Field("sum", description=(
        "Balance loss over layers: sum (the reference's; grows with depth) or mean."))
    checkpoint_steps: int = Field(200, ge=1, description="Optimizer steps between checkpoints to resume from.")
    log_steps: int = Field(10, ge=1, description="Optimizer steps between two points of the training curves.")
    num_processes: int = Field(1, ge=1, le=64, description=(
        "Processes on each machine that train together, and learn the mixing coefficients: one for each accelerator (or "
        "share of the cores). They split batch_size, so micro_batch_size times all processes must divide it; weights, "
        "gradients and optimizer state are split too. Plays no part in the result, which is that of one process but for "
        "rounding."))
    num_nodes: int = Field(1, ge=1, le=64, description=(
        "Machines that train together; more than one needs a common file system and the setting XFT_RENDEZVOUS, see "
        "docs/how-to/several-gpus.md. Plays no part in the result, which is that of one process but for rounding."))
    expert_learning_rate_factor: float = Field(1.0, gt=0, le=1000, description=(
        "Learning rate of low-rank experts' A and B (and biases), as a multiple of learning_rate. Plays no part without "
        "upcycle.expert_rank."))

    @model_validator(mode="after")
    def _batches_fit(self) -> "SftConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) does not divide batch_size ({self.batch_size})")
        processes = self.num_processes * self.num_nodes
        if self.batch_size % (self.micro_batch_size * processes):
            fitting = [size for size in range(1, self.micro_batch_size) if self.batch_size % (size * processes) == 0]
            advice = (
                f"a micro_batch_size of {fitting[-1]} does" if fitting
                else f"take a batch_size that is a multiple of {processes}, or fewer processes")
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) times {processes} processes does not divide batch_size "
                f"({self.batch_size}): {advice}")
        return self
