"""The recipe: every choice of a run, with its default and a help text. UI form, command line and MLflow parameters.

Frozen pydantic models, unknown fields refused. No torch here: flows, forms and the command line import this file.
Defaults are those of the XFT paper's reference run (arXiv 2404.15247, DeepSeek-Coder-1.3B) unless a help text says why not.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Normalization = Literal["xft", "renormalize", "none"]
MergeMethod = Literal["learned", "uniform", "routing", "ewa", "shared_only"]
Precision = Literal["fp32", "bf16", "bf16_mixed"]
PromptStyle = Literal["magicoder", "chat", "completion"]
Reaction = Literal["report", "stop"]
RecipeName = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
ExperimentName = Annotated[str, Field(min_length=1, max_length=200)]


PROCESS_FIELDS = ("num_processes", "num_nodes")  # of the section sft; they change no result
LARGEST_NUMBER, LONGEST_TEXT = 10**12, 100_000  # of any field: nothing that is meant comes near


class Section(BaseModel):
    """Base of all sections: immutable, and a field that does not exist is an error rather than ignored. No number is
    infinite or none at all, no text holds a NUL or what is not Unicode."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _can_be_meant(cls, value: Any) -> Any:
        _check_can_be_meant(value)
        return value


def _check_can_be_meant(value: Any) -> None:
    if isinstance(value, str | Path) and "\0" in str(value):
        raise ValueError("it holds a NUL character")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value[:LONGEST_TEXT]):
        raise ValueError("it holds half of a surrogate pair, which is not Unicode")
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(f"it has {len(value):,} characters, more than {LONGEST_TEXT:,}")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"it is beyond {LARGEST_NUMBER:,}")
    if isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_can_be_meant(item)


class ModelConfig(Section):
    """The dense model to start from."""

    path: str = Field("demo:model", description=(
        "Model directory (safetensors), a Hub name such as deepseek-ai/deepseek-coder-1.3b-base, an S3 address "
        "s3://bucket/prefix of a model directory or of an artifact, or demo:model for the small model that ships with the "
        "package."))
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit); only for a Hub name.")


class DataConfig(Section):
    """Instruction data and how it becomes training text."""

    path: str = Field("demo:instruct.jsonl", description=(
        "Instruction data: a .json, .jsonl or .parquet file, a Hub data set name, or demo:instruct.jsonl."))
    split: str = Field("train", description="Split to read when the data is a Hub data set.")
    format: Literal["auto", "instruction", "alpaca", "problem", "messages"] = Field("auto", description=(
        "Form of a row: instruction (instruction, response), alpaca (instruction, input, output), problem (problem, "
        "solution: OSS-Instruct), messages (list of role and content); auto recognises them by their fields."))
    template: Literal["magicoder", "chat"] = Field("magicoder", description=(
        "Prompt template for training: magicoder (the paper's) or chat (the tokenizer's own chat template)."))
    max_length: int = Field(1024, ge=16, le=1_048_576, description=(
        "Longest example, in tokens. A longer response is cut; a prompt that leaves no room for one is dropped."))
    max_rows: int | None = Field(None, ge=2, description=(
        "Use only this many rows, drawn by split_seed; empty for all."))
    held_out_rows: int = Field(200, ge=1, description=(
        "Rows kept out of training, to measure the negative log-likelihood per response token (at most a fifth of all)."))
    held_out_path: str | None = Field(None, description=(
        "Rows to hold out instead: a file or Hub data set in one of the forms above, all of whose rows are used. Rows that "
        "are also in it are not trained on. Empty: held_out_rows of the data."))
    split_seed: Seed = Field(0, description=(
        "Seed of the choice of rows and of those held out. It is not the recipe's seed, so that runs with other seeds train "
        "and are measured on the same rows: their spread is that of training alone."))
    decontaminate: bool = Field(True, description="Drop rows that contain a problem of the benchmarks chosen below.")


class UpcycleConfig(Section):
    """How the dense model becomes a Mixture-of-Experts."""

    num_experts: int = Field(8, ge=2, le=64, description="Experts per layer, the shared one included.")
    num_experts_per_tok: int = Field(6, ge=1, le=64, description=(
        "Experts active per token, the shared one included. At most num_experts."))
    normalization: Normalization = Field("xft", description=(
        "Routing weights: xft (max(s) times the softmax over the chosen s; sums to one), renormalize (max(s) times "
        "s over its sum; sums to one), none (s itself: the scale mismatch that XFT removes, for comparison). Plays no part "
        "without a shared expert, with 2 experts, or where num_experts_per_tok is 2."))
    shared_expert: bool = Field(True, description=(
        "One expert is always on (XFT). Off: vanilla sparse upcycling, softmax over the top-k logits of all experts."))
    router_noise: bool = Field(True, description="Noisy top-k while training: learned noise on the router's logits.")
    store_experts: Literal["once", "all"] = Field("once", description=(
        "once: the identical experts are stored once and expanded while loading; all: every expert is written out."))

    @property
    def is_identity(self) -> bool:
        """Whether the untouched Mixture-of-Experts is the dense model: its routing weights sum to one."""
        return self.normalization != "none" or not self.shared_expert

    @model_validator(mode="after")
    def _experts_fit(self) -> "UpcycleConfig":
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than num_experts ({self.num_experts}); "
                f"choose at most {self.num_experts}")
        if self.shared_expert and self.num_experts_per_tok < 2:
            raise ValueError("num_experts_per_tok is 1, but the shared expert is always on: choose 2 or more")
        return self


class SftConfig(Section):
    """Supervised fine-tuning, of the MoE and (see baseline) of the dense model."""

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


class BaselineConfig(Section):
    """The control: plain SFT of the dense model. Everything not named here is as in the section sft."""

    enabled: bool = Field(True, description="Train and evaluate the dense baseline too.")
    epochs: float | None = Field(None, gt=0, le=1000, description="Passes over the rows; empty: as in sft.")
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak learning rate; empty: as in sft.")
    warmup_steps: int | None = Field(None, ge=0, description="Warm-up steps; empty: as in sft.")

    def applied_to(self, sft: SftConfig) -> SftConfig:
        """The baseline's SFT configuration: ``sft`` with the fields set here, and no balance loss (a dense model
        has no router, so that field must not make two otherwise equal baselines differ)."""
        changes = {name: value for name, value in self.model_dump(exclude={"enabled"}).items() if value is not None}
        changes |= {"balance_loss_weight": 0.0, "balance_loss_reduction": "sum"}
        return SftConfig(**(sft.model_dump() | changes))


class MergeConfig(Section):
    """How the experts become one dense model: W = lambda W_0 + (1 - lambda) sum_i softmax(alpha)_i W_i per layer."""

    method: MergeMethod = Field("learned", description=(
        "learned (alpha by gradient), uniform (equal alpha), routing (mean routing weights on training data), "
        "ewa (mean of all experts), shared_only (the shared expert alone)."))
    shared_expert_weight: float | None = Field(0.75, ge=0, le=1, description=(
        "lambda, the shared expert's share; empty: learned too, from 0.75 (method learned only). Plays no part in "
        "the methods routing, ewa and shared_only, nor without a shared expert."))
    learning_rate: float = Field(0.02, gt=0, le=10, description=(
        "Adam's learning rate for alpha. The paper's 1e-5 leaves every weight within about 1% of uniform; this one moves "
        "them. Plays no part in methods other than learned."))
    epochs: float = Field(1.0, gt=0, le=100, description=(
        "Passes over the training rows. Plays no part in methods other than learned."))
    max_steps: int | None = Field(None, ge=1, description=(
        "Stop after this many optimizer steps; empty for no limit. Plays no part in methods other than learned."))
    batch_size: int = Field(64, ge=1, description=(
        "Sequences per optimizer step. Plays no part in methods other than learned."))
    micro_batch_size: int = Field(8, ge=1, description=(
        "Sequences per forward pass. Must divide batch_size. Plays no part in methods other than learned."))
    warmup_steps: int = Field(125, ge=0, description=(
        "Steps of linear warm-up (at most a tenth of all steps). Plays no part in methods other than learned."))
    calibration_rows: int = Field(512, ge=1, description=(
        "Training rows that method routing averages over. Plays no part in other methods."))
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Weights and arithmetic while learning alpha.")

    @model_validator(mode="after")
    def _fields_fit(self) -> "MergeConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) does not divide batch_size ({self.batch_size})")
        if self.shared_expert_weight is None and self.method == "uniform":
            raise ValueError("shared_expert_weight is empty (learned), but method is uniform: give a number, 0 to 1")
        return self


class GenerateConfig(Section):
    """How the models answer the benchmark's problems."""

    prompt_style: Literal["auto", "magicoder", "chat", "completion"] = Field("auto", description=(
        "Prompt for tuned models: auto (the form they were tuned in: data.template), magicoder (the paper's), chat (the "
        "tokenizer's template) or completion (plain code). A form that they were not tuned in is warned of."))
    base_prompt_style: PromptStyle = Field("completion", description=(
        "Prompt for the untuned base model, which must be measured in the form it knows."))
    max_new_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    num_samples: int = Field(1, ge=1, le=10_000, description="Answers per problem; more than one needs a temperature.")
    temperature: float = Field(0.0, ge=0, le=5, description="0 for greedy decoding, else the sampling temperature.")
    top_p: float = Field(1.0, gt=0, le=1, description=(
        "Sample from the smallest set of tokens with this probability. Plays no part at temperature 0."))
    batch_size: int = Field(16, ge=1, description="Problems answered at once.")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Arithmetic while generating.")
    backend: Literal["transformers", "vllm"] = Field("transformers", description=(
        "What computes the answers: transformers (any model) or vllm (faster on a GPU; needs an environment with vLLM, see "
        "docs/how-to/vllm.md; not for the upcycled Mixture-of-Experts, so not in a pipeline run)."))

    @model_validator(mode="after")
    def _samples_need_temperature(self) -> "GenerateConfig":
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(f"num_samples is {self.num_samples} with temperature 0: all would be equal; set a temperature")
        return self


class EvaluateConfig(Section):
    """Which benchmark, and how its answers are graded."""

    benchmarks: list[str] = Field(["demo:benchmark.jsonl"], min_length=1, description=(
        "Benchmarks: humaneval (HumanEval and HumanEval+ from evalplus's own cache), mbpp, multipl-e/js (and ts, java, cpp, "
        "rs, go, php, rb, lua, pl, sh), ds1000 (the files of these two in the directory XFT_BENCHMARKS), the path of a .jsonl "
        "or .jsonl.gz file in one of these forms, or demo:benchmark.jsonl."))
    max_problems: int | None = Field(None, ge=1, description="Only the first this many problems; empty for all.")
    min_time_limit: float = Field(4.0, gt=0, le=600, description="Shortest time limit for one test input, in seconds.")
    time_limit_factor: float = Field(4.0, ge=1, le=1000, description="Limit as a multiple of the reference's own time.")
    memory_limit_mb: int = Field(6144, ge=256, le=2**24, description="Memory one graded program may reserve, in MB.")
    workers: int | None = Field(None, ge=1, le=1024, description="Programs graded at once; empty: one per processor core.")
    sandbox: Literal["bubblewrap", "unsafe"] = Field("bubblewrap", description=(
        "Grading runs what a model wrote. bubblewrap contains it; unsafe runs it with nothing around it but evalplus's "
        "own guard, which does not stop network, files or processes."))
    ds1000_environment: Literal["pinned", "current"] = Field("pinned", description=(
        "Libraries DS-1000 is graded with: pinned (those of its authors, made by python -m xft_core ds1000-environment) or "
        "current (those of this package; other scores, not to be compared with published ones)."))
    k: list[Annotated[int, Field(ge=1)]] = Field([1], min_length=1, description=(
        "pass@k for these k; k above num_samples is left out."))
    held_out_data: list[str] = Field([], description=(
        "Instruction data (.json, .jsonl or .parquet files, Hub data sets) to measure every model's negative log-likelihood "
        "per response token on, in the form of the section data (template, max_length, split)."))
    lm_eval_tasks: list[str] = Field([], description=(
        "Tasks of lm-evaluation-harness to run, for example mmlu; needs the extra lm-eval."))
    lm_eval_directory: str | None = Field(None, description=(
        "Directory with the YAML files of your own tasks; data files named in them are relative to it. Empty: only the "
        "tasks that lm-eval ships, most of which fetch their data from the Hub."))
    lm_eval_limit: int | None = Field(None, ge=1, description="Only the first this many questions of a task; empty for all.")


class ChecksConfig(Section):
    """What a run looks out for. The report names whatever went wrong; each may also stop the run there and then, with
    everything finished kept. A loss that is no number always stops it."""

    diverging_loss: Reaction = Field("report", description=(
        "The training loss has risen far above its lowest point: by 30% of it, and by 0.3 nats at least, in the mean of "
        "five points of the curve. report: go on and say so; stop: end the training there."))
    dead_experts: Reaction = Field("report", description=(
        "In some layer a routed expert got less than 1% of the tokens for dead_expert_steps steps on end. report or stop."))
    dead_expert_steps: int = Field(100, ge=1, description="Optimizer steps after which an unused expert counts as dead.")
    unmoved_coefficients: Reaction = Field("report", description=(
        "Learned mixing coefficients moved by less than 0.01 anywhere: uniform mixing in all but name. report, or stop "
        "before merging."))
    worse_than_uniform: Reaction = Field("report", description=(
        "Learned mixing has a higher held-out loss than uniform mixing. report, or stop before merging."))
    worse_than_base: Reaction = Field("report", description=(
        "The merged model has a higher held-out loss than the base model. report, or stop before answers are generated."))


class RegistryConfig(Section):
    """The merged model in MLflow's model registry."""

    enabled: bool = Field(True, description=(
        "Register the merged model. The alias champion moves to it only if its held-out loss and pass@1 (plus, first "
        "benchmark) are measured on the same data as the champion's and not worse."))
    name: RecipeName | None = Field(None, description="Name of the registered model; empty: the recipe's name.")


class Recipe(Section):
    """One run of the pipeline, complete."""

    name: RecipeName = Field("demo", description=(
        "Name of the recipe: letters, digits, dot, dash, underscore. Runs and models are called by it."))
    seed: Seed = Field(0, description=(
        "Seed of everything random in training and sampling: order, router, noise, samples. (The choice of rows has a seed of "
        "its own: data.split_seed.)"))
    experiment: ExperimentName = Field("xft", description="MLflow experiment the run belongs to.")
    check_fit: bool = Field(True, description=(
        "Refuse, before any work, a recipe that surely needs more memory or disk than this machine has (see xft plan)."))
    model: ModelConfig = Field(ModelConfig(), description="The dense model that everything starts from.")
    data: DataConfig = Field(DataConfig(), description=(
        "Instruction data and how it becomes training text, rows and held-out rows."))
    baseline: BaselineConfig = Field(BaselineConfig(), description="The control: plain SFT of the dense model.")
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="From the dense model to a Mixture-of-Experts.")
    sft: SftConfig = Field(SftConfig(), description=(
        "Supervised fine-tuning of the Mixture-of-Experts, and of the baseline where that says nothing else."))
    merge: MergeConfig = Field(MergeConfig(), description="From the experts to one dense model.")
    generate: GenerateConfig = Field(GenerateConfig(), description="Answers of every model to the benchmarks' problems.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Benchmarks and grading.")
    checks: ChecksConfig = Field(ChecksConfig(), description="What a run looks out for, and whether that stops it.")
    registry: RegistryConfig = Field(RegistryConfig(), description="The merged model in MLflow's registry.")

    @property
    def prompt_style(self) -> PromptStyle:
        """The form in which tuned models are asked: that of generate, or the one they were tuned in."""
        return self.data.template if self.generate.prompt_style == "auto" else self.generate.prompt_style

    @model_validator(mode="after")
    def _sections_fit(self) -> "Recipe":
        if self.merge.method == "shared_only" and not self.upcycle.shared_expert:
            raise ValueError("merge.method is shared_only, but upcycle.shared_expert is false: there is no shared expert")
        return self
