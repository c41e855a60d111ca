"""The stages: what each is given, and what of that changes its result. What all have in common is in stage.py."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.config import (
    PROCESS_FIELDS,
    ChecksConfig,
    DataConfig,
    EvaluateConfig,
    GenerateConfig,
    MergeConfig,
    Precision,
    Recipe,
    Seed,
    SftConfig,
    UpcycleConfig,
)
from xft_core.errors import DataError
from xft_core.fingerprint import directory_digest, input_digest
from xft_core.locations import find_benchmark, find_file, find_model, is_there
from xft_core.stage import StageConfig

# What of the section evaluate changes the verdicts on one benchmark (ds1000_environment does by the versions it means).
GRADING = frozenset({"min_time_limit", "time_limit_factor", "memory_limit_mb", "sandbox", "k"})
ARTIFACT_HELP = "Directory that an earlier stage published"


class PrepareStage(StageConfig):
    """Instruction data to token sequences: training rows and held-out rows."""

    stage, version, implementation = "prepare", 1, "xft_core.data.prepare"
    path_fields = frozenset({"model", "benchmarks"})

    model: str = Field("demo:model", description="Model whose tokenizer and chat template are used.")
    seed: Seed = Field(0, description="Seed of the choice of rows and of the held-out split.")
    data: DataConfig = Field(DataConfig(), description="Instruction data.")
    benchmarks: list[str] = Field([], description="Benchmarks whose problems must not be in the data.")

    def inputs(self) -> dict[str, Path]:
        """The tokenizer's model directory, the data file unless it is a Hub data set, and the benchmarks."""
        found = {"tokenizer": find_model(self.model)}
        if is_file(self.data):
            found["data"] = find_file(self.data.path)
        if self.data.decontaminate:
            found |= {f"benchmark_{index}": find_benchmark(name) for index, name in enumerate(self.benchmarks)}
        return found

    def input_digests(self) -> dict[str, str]:
        """As for any stage, but of the model only the tokenizer's files count."""
        from xft_core.data.tokenizer import tokenizer_files

        inputs = self.inputs()
        model = inputs.pop("tokenizer")
        digests = {name: input_digest(path) for name, path in inputs.items()}
        return digests | {"tokenizer": directory_digest(model, tokenizer_files(model))}

    def settings(self) -> dict[str, Any]:
        """A data file counts by its contents; a Hub data set by its name (pin it: owner/name@revision)."""
        settings = super().settings()
        if is_file(self.data):
            del settings["data"]["path"]
        return settings


class UpcycleStage(StageConfig):
    """Dense model to Mixture-of-Experts."""

    stage, version, implementation = "upcycle", 1, "xft_core.upcycle"

    model: str = Field("demo:model", description="Dense model: directory, Hub name or demo:model.")
    seed: Seed = Field(0, description="Seed of the router's weights.")
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="Dense model to Mixture-of-Experts.")

    def inputs(self) -> dict[str, Path]:
        """The dense model."""
        return {"model": find_model(self.model)}


class SftStage(StageConfig):
    """Supervised fine-tuning of a dense model or of an upcycled one."""

    stage, version, implementation = "sft", 4, "xft_core.sft"

    model: str = Field(description="Model to tune: a dense one, or what the upcycle stage made.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    seed: Seed = Field(0, description="Seed of the order of the data and of the router's noise.")
    sft: SftConfig = Field(SftConfig(), description="Supervised fine-tuning.")
    checks: ChecksConfig = Field(ChecksConfig(), description="What stops the training.")

    def inputs(self) -> dict[str, Path]:
        """The model and the prepared data."""
        return {"model": find_model(self.model), "data": self.data}

    def settings(self) -> dict[str, Any]:
        """All but what only changes how often progress is written down, what stops it, and how many work on it."""
        settings = super().settings()
        del settings["checks"]
        for name in ("checkpoint_steps", "log_steps", *PROCESS_FIELDS):
            del settings["sft"][name]
        return settings

    def processes(self) -> tuple[int, int]:
        """Those of the section."""
        return self.sft.num_processes, self.sft.num_nodes


class MixStage(StageConfig):
    """Mixing coefficients: how much of each expert goes into the merged model, layer by layer."""

    stage, version, implementation = "mix", 2, "xft_core.mixing"

    model: str = Field(description="The tuned Mixture-of-Experts.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    seed: Seed = Field(0, description="Seed of the order of the data.")
    merge: MergeConfig = Field(MergeConfig(), description="Experts to one dense model.")
    num_processes: int = Field(1, ge=1, le=64, description="Processes on each machine that learn them together.")
    num_nodes: int = Field(1, ge=1, le=64, description="Machines that learn them together: docs/scale.md.")

    def processes(self) -> tuple[int, int]:
        """Those of the fields where there is something to learn."""
        return (self.num_processes, self.num_nodes) if self.merge.method == "learned" else (1, 1)

    def inputs(self) -> dict[str, Path]:
        """The tuned Mixture-of-Experts and the prepared data."""
        return {"model": find_model(self.model), "data": self.data}

    def settings(self) -> dict[str, Any]:
        """Only the fields that play a part in the chosen method (lambda in all: uniform mixing is what each is compared
        with)."""
        settings = super().settings()
        for name in PROCESS_FIELDS:
            del settings[name]
        method = self.merge.method
        used = {"method", "precision", "micro_batch_size", "shared_expert_weight"}
        if method == "learned":
            used |= {"learning_rate", "epochs", "max_steps", "batch_size", "warmup_steps"}
        if method == "routing":
            used |= {"calibration_rows"}
        settings["merge"] = {name: value for name, value in settings["merge"].items() if name in used}
        return settings


class MergeStage(StageConfig):
    """Mixture-of-Experts and mixing coefficients to a stock dense checkpoint."""

    stage, version, implementation = "merge", 2, "xft_core.merge"
    path_fields = frozenset({"model", "coefficients", "data"})

    model: str = Field(description="The tuned Mixture-of-Experts.")
    coefficients: Path = Field(description=f"{ARTIFACT_HELP}: mix.")
    data: Path | None = Field(None, description=f"{ARTIFACT_HELP}: prepare. To measure the merged model's held-out loss.")
    precision: Precision = Field("fp32", description="Weights and arithmetic of that measurement; give the one of sft.")

    def inputs(self) -> dict[str, Path]:
        """The Mixture-of-Experts, the coefficients and, if given, the prepared data."""
        found = {"model": find_model(self.model), "coefficients": self.coefficients}
        return found | ({"data": self.data} if self.data else {})


class GenerateStage(StageConfig):
    """A model's answers to the problems of one benchmark."""

    stage, version, implementation = "generate", 2, "xft_core.generate"

    model: str = Field(description="Any model: dense, upcycled, tuned or merged.")
    benchmark: str = Field("demo:benchmark.jsonl", description="Benchmark: a name, a file, or demo:benchmark.jsonl.")
    max_problems: int | None = Field(None, ge=1, description="Only the first this many problems; empty for all.")
    seed: Seed = Field(0, description="Seed of sampling.")
    prompt_style: str = Field("magicoder", description="magicoder, chat or completion.")
    generate: GenerateConfig = Field(GenerateConfig(), description="Answers to the benchmark's problems.")

    def inputs(self) -> dict[str, Path]:
        """The model and the benchmark."""
        return {"model": find_model(self.model), "benchmark": find_benchmark(self.benchmark)}

    def settings(self) -> dict[str, Any]:
        """``prompt_style`` of this stage decides; the two of the section are what the pipeline chooses from."""
        settings = super().settings()
        for name in ("prompt_style", "base_prompt_style"):
            del settings["generate"][name]
        return settings


class EvaluateStage(StageConfig):
    """Verdicts and pass@k for a model's answers."""

    stage, version, implementation = "evaluate", 4, "xft_core.evaluate"

    samples: Path = Field(description=f"{ARTIFACT_HELP}: generate.")
    benchmark: str = Field("demo:benchmark.jsonl", description="The benchmark the samples answer.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Benchmark and grading.")

    def inputs(self) -> dict[str, Path]:
        """The samples and the benchmark."""
        return {"samples": self.samples, "benchmark": find_benchmark(self.benchmark)}

    def settings(self) -> dict[str, Any]:
        """Of the section, how this benchmark is graded; and the toolchain or the environment that it is graded with: also
        that there is none."""
        from xft_core.benchmarks.kinds import kind_of

        settings = super().settings()
        settings["evaluate"] = {name: value for name, value in settings["evaluate"].items() if name in GRADING}
        benchmark = find_benchmark(self.benchmark)
        versions = kind_of(benchmark).versions(benchmark, self.evaluate)
        return settings | ({"versions": versions} if versions else {})


class NllStage(StageConfig):
    """Negative log-likelihood per response token of a model on instruction data."""

    stage, version, implementation = "nll", 1, "xft_core.nll"
    path_fields = frozenset({"model"})

    model: str = Field("demo:model", description="Any model: dense, upcycled, tuned or merged.")
    seed: Seed = Field(0, description="Seed of the choice of rows (data.max_rows).")
    data: DataConfig = Field(DataConfig(), description="Instruction data, and how it becomes text for the model.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")

    def inputs(self) -> dict[str, Path]:
        """The model, and the data file unless it is a Hub data set."""
        return {"model": find_model(self.model)} | ({"data": find_file(self.data.path)} if is_file(self.data) else {})

    def settings(self) -> dict[str, Any]:
        """A data file counts by its contents; of the section, what makes rows of it."""
        settings = super().settings()
        for name in ("held_out_rows", "decontaminate", *(["path"] if is_file(self.data) else [])):
            del settings["data"][name]
        return settings


class LmEvalStage(StageConfig):
    """One task of lm-evaluation-harness, for example MMLU."""

    stage, version, implementation = "lm_eval", 1, "xft_core.lm_eval_task"
    path_fields = frozenset({"model", "directory"})

    model: str = Field("demo:model", description="Any model: dense, upcycled, tuned or merged.")
    task: str = Field(description="Name of a task or a group of tasks.")
    directory: Path | None = Field(None, description=(
        "Directory with the YAML files of tasks of one's own; data files named in them are relative to it."))
    limit: int | None = Field(None, ge=1, description="Only the first this many questions; empty for all.")
    batch_size: int = Field(16, ge=1, description="Questions answered at once.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")
    seed: Seed = Field(0, description="Seed of the choice of examples in the prompt, where a task has any.")

    def inputs(self) -> dict[str, Path]:
        """The model and, if given, the task directory."""
        return {"model": find_model(self.model)} | ({"tasks": self.directory} if self.directory else {})

    def input_digests(self) -> dict[str, str]:
        """As for any stage, but of the task directory every file counts."""
        digests = {"model": input_digest(self.inputs()["model"])}
        if self.directory:
            files = [path for path in self.directory.rglob("*") if path.is_file()]
            digests["tasks"] = directory_digest(self.directory, files)
        return digests

    def settings(self) -> dict[str, Any]:
        """Also the harness's version. Raises DataError when it is not installed."""
        return super().settings() | {"lm_eval": lm_eval_version()}


class ReportStage(StageConfig):
    """Comparison table, plots, model card and a page of all answers, from what the other stages left."""

    stage, version, implementation = "report", 2, "xft_core.report"
    path_fields = frozenset({"artifacts"})

    artifacts: dict[str, Path] = Field(description="Published stages by role, for example sft_moe, evaluate_merged_0.")
    recipe: Recipe = Field(description="The recipe of the run.")

    def inputs(self) -> dict[str, Path]:
        """Every artifact reported on."""
        return dict(self.artifacts)

    def settings(self) -> dict[str, Any]:
        """All but what no report tells: where the model is registered, whether the machine was asked for its size, and how
        many processes trained."""
        settings = super().settings()
        for name in ("registry", "check_fit"):
            del settings["recipe"][name]
        for name in PROCESS_FIELDS:
            del settings["recipe"]["sft"][name]
        return settings


class CompareStage(StageConfig):
    """Variants of a recipe side by side, from their reports alone."""

    stage, version, implementation = "compare", 1, "xft_core.compare"
    path_fields = frozenset({"reports"})

    recipe: Recipe = Field(description="The recipe that all variants start from.")
    grid: list[str] = Field(description="What varies: section.field=[value, value], see xft_core/grid.py.")
    reports: dict[str, Path] = Field(description="Report of each variant by its name; one that failed is left out.")

    def inputs(self) -> dict[str, Path]:
        """Every variant's report."""
        return dict(self.reports)

    def settings(self) -> dict[str, Any]:
        """All but what no report tells."""
        settings = super().settings()
        for name in ("experiment", "registry", "check_fit"):
            del settings["recipe"][name]
        for name in PROCESS_FIELDS:
            del settings["recipe"]["sft"][name]
        return settings


class ImportReferenceStage(StageConfig):
    """A Mixture-of-Experts of the XFT reference code to one of ours. Not part of the pipeline: its model comes from outside."""

    stage, version, implementation = "import-reference", 1, "xft_core.import_reference"

    model: str = Field(description="Model directory that the reference code saved, in safetensors, or a Hub name.")
    rope_base: float = Field(10000.0, gt=0, description=(
        "RoPE base to run the model at. The reference runs at 10000, whatever its config says; a model that was trained "
        "with that repaired needs the dense model's own (100000 for DeepSeek-Coder)."))

    def inputs(self) -> dict[str, Path]:
        """The reference's model."""
        return {"model": find_model(self.model)}


STAGES: dict[str, type[StageConfig]] = {
    config.stage: config for config in (
        PrepareStage, UpcycleStage, SftStage, MixStage, MergeStage, GenerateStage, EvaluateStage, NllStage, LmEvalStage,
        ReportStage, CompareStage)
}


def is_file(data: DataConfig) -> bool:
    """Whether instruction data is a local or shipped file rather than a Hub data set."""
    name = data.path
    return name.startswith("demo:") or Path(name).suffix in (".json", ".jsonl", ".parquet") or is_there(name)


def lm_eval_version() -> str:
    """The installed version of lm-evaluation-harness. Raises DataError, saying what to install, without one."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise DataError(
            "Tasks of lm-eval need lm-evaluation-harness, which is not installed: pip install -c constraints.txt "
            "-e '.[lm-eval]'."
        ) from None
