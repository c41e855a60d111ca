"""The stages: what each is given, and what of that changes its result. What all have in common is in stage.py."""

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.benchmarks.find import find_benchmark
from xft_core.errors import DataError
from xft_core.files.digests import directory_digest
from xft_core.files.locate import find_file, find_model, is_data_file
from xft_core.recipe.inactive_fields import (
    draws_samples,
    learns,
    measuring_precision,
    unused_in_generate,
    unused_in_merge,
    unused_in_upcycle,
)
from xft_core.recipe.sections import (
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
from xft_core.recipe.steps import FACTS
from xft_core.stages.base import StageConfig
from xft_core.stages.preconditions import (
    NOT_YET,
    Preconditions,
    check_data,
    check_directory,
    check_model,
    check_sandbox,
    grading_versions,
)
from xft_core.store.artifacts import input_digest

# What of the section evaluate changes the verdicts on one benchmark (ds1000_environment does by the versions it means).
GRADING = frozenset({"min_time_limit", "time_limit_factor", "memory_limit_mb", "sandbox", "k"})
ARTIFACT_HELP = "Directory that an earlier stage published"


class PrepareStage(StageConfig):
    summary = "Instruction data to token sequences: training rows and held-out rows."

    stage, version, implementation = "prepare", 2, "xft_core.stages.prepare"
    path_fields = frozenset({"model", "benchmarks"})

    model: str = Field("demo:model", description="Model whose tokenizer and chat template are used.")
    data: DataConfig = Field(DataConfig(), description="Instruction data.")
    benchmarks: list[str] = Field([], description="Benchmarks whose problems must not be in the data.")

    def preconditions(self) -> Preconditions:
        """The model, for its tokenizer, the data and the benchmarks."""
        found = {**_model(self.model), **_data(self.data.path, self.data.held_out_path)}
        if self.data.decontaminate:
            found |= {f"benchmark {name}": partial(find_benchmark, name) for name in self.benchmarks}
        return found

    def inputs(self) -> dict[str, Path]:
        """The tokenizer's model directory, the data files unless they are Hub data sets, and the benchmarks."""
        found = {"tokenizer": find_model(self.model)}
        for name, path in (("data", self.data.path), ("held_out", self.data.held_out_path)):
            if path is not None and is_data_file(path):
                found[name] = find_file(path)
        if self.data.decontaminate:
            found |= {f"benchmark_{index}": find_benchmark(name) for index, name in enumerate(self.benchmarks)}
        return found

    def input_digests(self) -> dict[str, str]:
        """As for any stage, but of the model only the tokenizer's files count."""
        from xft_core.models.tokenizer_files import tokenizer_files

        inputs = self.inputs()
        model = inputs.pop("tokenizer")
        digests = {name: input_digest(path) for name, path in inputs.items()}
        return digests | {"tokenizer": directory_digest(model, tokenizer_files(model))}

    def settings(self) -> dict[str, Any]:
        """A data file counts by its contents; a Hub data set by its name (pin it: owner/name@revision)."""
        settings = super().settings()
        for name in ("path", "held_out_path"):
            path = settings["data"][name]
            if path is not None and is_data_file(path):
                del settings["data"][name]
        return settings


class UpcycleStage(StageConfig):
    summary = "Dense model to Mixture-of-Experts."

    stage, version, implementation = "upcycle", 1, "xft_core.stages.upcycle"

    model: str = Field("demo:model", description="Dense model: directory, Hub name or demo:model.")
    seed: Seed = Field(0, description="Seed of the router's weights.")
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="Dense model to Mixture-of-Experts.")

    def preconditions(self) -> Preconditions:
        """The dense model."""
        return _model(self.model)

    def inputs(self) -> dict[str, Path]:
        """The dense model."""
        return {"model": find_model(self.model)}

    def settings(self) -> dict[str, Any]:
        """All but what no code looks at."""
        return without(super().settings(), "upcycle", unused_in_upcycle(self.upcycle))


class SftStage(StageConfig):
    summary = "Supervised fine-tuning of a dense model or of an upcycled one."

    stage, version, implementation = "sft", 5, "xft_core.stages.sft"

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
    summary = "Mixing coefficients: how much of each expert goes into the merged model, layer by layer."

    stage, version, implementation = "mix", 2, "xft_core.stages.mix"

    model: str = Field(description="The tuned Mixture-of-Experts.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    seed: Seed = Field(0, description="Seed of the order of the data.")
    merge: MergeConfig = Field(MergeConfig(), description="Experts to one dense model.")
    num_processes: int = Field(1, ge=1, le=64, description="Processes on each machine that learn them together.")
    num_nodes: int = Field(1, ge=1, le=64, description="Machines that learn them together: docs/how-to/several-gpus.md.")

    def processes(self) -> tuple[int, int]:
        """Those of the fields where there is something to learn."""
        return (self.num_processes, self.num_nodes) if self.merge.method == "learned" else (1, 1)

    def inputs(self) -> dict[str, Path]:
        """The tuned Mixture-of-Experts and the prepared data."""
        return {"model": find_model(self.model), "data": self.data}

    def settings(self) -> dict[str, Any]:
        """Only the fields that play a part in the chosen method."""
        settings = super().settings()
        for name in (*PROCESS_FIELDS, *(() if learns(self.merge) else ("seed",))):
            del settings[name]
        return without(settings, "merge", unused_in_merge(self.merge))


class MergeStage(StageConfig):
    summary = "Mixture-of-Experts and mixing coefficients to a stock dense checkpoint."

    stage, version, implementation = "merge", 3, "xft_core.stages.merge"
    path_fields = frozenset({"model", "coefficients", "data"})

    model: str = Field(description="The tuned Mixture-of-Experts.")
    coefficients: Path = Field(description=f"{ARTIFACT_HELP}: mix.")
    data: Path | None = Field(None, description=f"{ARTIFACT_HELP}: prepare. To measure the merged model's held-out loss.")
    precision: Precision = Field("fp32", description="Weights and arithmetic of that measurement; give the one of sft.")
    export_adapter: bool = Field(False, description=(
        "Also write the merge of low-rank experts as a LoRA adapter for PEFT (adapter/), and the weights that they share as "
        "the model that it is for (shared_weights/)."))

    def inputs(self) -> dict[str, Path]:
        """The Mixture-of-Experts, the coefficients and, if given, the prepared data."""
        found = {"model": find_model(self.model), "coefficients": self.coefficients}
        return found | ({"data": self.data} if self.data else {})

    def settings(self) -> dict[str, Any]:
        """The precision is that of a measurement: where there is no data, there is none."""
        measured = {"precision": measuring_precision(self.precision)} if self.data else {}
        return measured | ({"export_adapter": True} if self.export_adapter else {})


class GenerateStage(StageConfig):
    summary = "A model's answers to the problems of one benchmark."

    stage, version, implementation = "generate", 3, "xft_core.stages.generate"

    model: str = Field(description="Any model: dense, upcycled, tuned or merged.")
    benchmark: str = Field("demo:benchmark.jsonl", description="Benchmark: a name, a file, or demo:benchmark.jsonl.")
    max_problems: int | None = Field(None, ge=1, description="Only the first this many problems; empty for all.")
    seed: Seed = Field(0, description="Seed of sampling.")
    prompt_style: str = Field("magicoder", description="magicoder, chat or completion.")
    generate: GenerateConfig = Field(GenerateConfig(), description="Answers to the benchmark's problems.")

    def preconditions(self) -> Preconditions:
        """The model and the benchmark."""
        return {**_model(self.model), f"benchmark {self.benchmark}": partial(find_benchmark, self.benchmark)}

    def inputs(self) -> dict[str, Path]:
        """The model and the benchmark."""
        return {"model": find_model(self.model), "benchmark": find_benchmark(self.benchmark)}

    def settings(self) -> dict[str, Any]:
        """``prompt_style`` of this stage decides; the two of the section are what the pipeline chooses from. Greedy answers
        are the same for every seed."""
        settings = super().settings()
        if not draws_samples(self.generate):
            del settings["seed"]
        return without(settings, "generate", ("prompt_style", "base_prompt_style", *unused_in_generate(self.generate)))


class EvaluateStage(StageConfig):
    summary = "Verdicts and pass@k for a model's answers."

    stage, version, implementation = "evaluate", 4, "xft_core.stages.evaluate"

    samples: Path = Field(description=f"{ARTIFACT_HELP}: generate.")
    benchmark: str = Field("demo:benchmark.jsonl", description="The benchmark the samples answer.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Benchmark and grading.")

    def preconditions(self) -> Preconditions:
        """The benchmark, what it is graded with, and a sandbox that works."""
        return {f"benchmark {self.benchmark}": partial(find_benchmark, self.benchmark),
                f"grading {self.benchmark}": partial(grading_versions, self.benchmark, self.evaluate),
                f"sandbox for {self.benchmark}": partial(check_sandbox, self.benchmark, self.evaluate)}

    def inputs(self) -> dict[str, Path]:
        """The samples and the benchmark."""
        return {"samples": self.samples, "benchmark": find_benchmark(self.benchmark)}

    def settings(self) -> dict[str, Any]:
        """Of the section, how this benchmark is graded; and the toolchain or the environment that it is graded with: also
        that there is none."""
        from xft_core.benchmarks.registry import kind_of

        settings = super().settings()
        used = GRADING - kind_of(find_benchmark(self.benchmark)).unused_settings
        settings["evaluate"] = {name: value for name, value in settings["evaluate"].items() if name in used}
        settings["evaluate"]["k"] = sorted({1, *self.evaluate.k})  # in any order, and 1 always
        versions = grading_versions(self.benchmark, self.evaluate)
        return settings | ({"versions": versions} if versions else {})


class NllStage(StageConfig):
    summary = "Negative log-likelihood per response token of a model on instruction data."

    stage, version, implementation = "nll", 2, "xft_core.stages.nll"
    path_fields = frozenset({"model"})

    model: str = Field("demo:model", description="Any model: dense, upcycled, tuned or merged.")
    data: DataConfig = Field(DataConfig(), description="Instruction data, and how it becomes text for the model.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")

    def preconditions(self) -> Preconditions:
        """The model and the data."""
        return {**_model(self.model), **_data(self.data.path)}

    def inputs(self) -> dict[str, Path]:
        """The model, and the data file unless it is a Hub data set."""
        return {"model": find_model(self.model)} | ({"data": find_file(self.data.path)} if is_data_file(self.data.path) else {})

    def settings(self) -> dict[str, Any]:
        """A data file counts by its contents; of the section, what makes rows of it. A seed counts where it chooses some."""
        settings = super().settings() | {"precision": measuring_precision(self.precision)}
        unused = ["held_out_rows", "held_out_path", "decontaminate"]
        unused += ["path", "split"] if is_data_file(self.data.path) else []
        unused += ["split_seed"] if self.data.max_rows is None else []
        return without(settings, "data", unused)


class LmEvalStage(StageConfig):
    summary = "One task of lm-evaluation-harness, for example MMLU."

    stage, version, implementation = "lm_eval", 2, "xft_core.stages.lm_eval"
    path_fields = frozenset({"model", "directory"})

    model: str = Field("demo:model", description="Any model: dense, upcycled, tuned or merged.")
    task: str = Field(description="Name of a task or a group of tasks.")
    directory: Path | None = Field(None, description=(
        "Directory with the YAML files of your own tasks; data files named in them are relative to it."))
    limit: int | None = Field(None, ge=1, description="Only the first this many questions; empty for all.")
    batch_size: int = Field(16, ge=1, description="Questions answered at once.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")
    seed: Seed = Field(0, description="Seed of the choice of examples in the prompt, where a task has any.")

    def preconditions(self) -> Preconditions:
        """The model, the harness and the directory of tasks."""
        found = {**_model(self.model), "lm-eval": lm_eval_version}
        if self.directory:
            found["lm_eval_directory"] = partial(check_directory, "evaluate.lm_eval_directory", self.directory)
        return found

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
        return super().settings() | {"precision": measuring_precision(self.precision), "lm_eval": lm_eval_version()}


class ReportStage(StageConfig):
    summary = "Comparison table, plots, model card and a page of all answers, from what the other stages left."

    stage, version, implementation = "report", 3, "xft_core.stages.report"
    path_fields = frozenset({"artifacts"})

    artifacts: dict[str, Path] = Field(description="Published stages by role, for example sft_moe, evaluate_merged_0.")
    recipe: Recipe = Field(description="The recipe of the run.")

    def inputs(self) -> dict[str, Path]:
        """Every artifact reported on."""
        return dict(self.artifacts)

    def settings(self) -> dict[str, Any]:
        """All but what no report tells."""
        return without_untold(super().settings())


class CompareStage(StageConfig):
    summary = "Variants of a recipe side by side, from their reports alone."

    stage, version, implementation = "compare", 3, "xft_core.stages.compare"
    path_fields = frozenset({"reports"})

    recipe: Recipe = Field(description="The recipe that all variants start from.")
    grid: list[str] = Field(description="What varies: section.field=[value, value], see xft_core/recipe/grid.py.")
    reports: dict[str, Path] = Field(description="Report of each variant by its name; one that failed is left out.")

    def inputs(self) -> dict[str, Path]:
        """Every variant's report."""
        return dict(self.reports)

    def settings(self) -> dict[str, Any]:
        """All but what no report tells."""
        return without_untold(super().settings())


class ImportReferenceStage(StageConfig):
    # Not part of the pipeline: its model comes from outside.
    summary = "A Mixture-of-Experts of the XFT reference code to one of ours."

    stage, version, implementation = "import-reference", 1, "xft_core.stages.import_reference"

    model: str = Field(description="Model directory that the reference code saved, in safetensors, or a Hub name.")
    rope_base: float = Field(10000.0, gt=0, description=(
        "RoPE base to run the model at. The reference runs at 10000, whatever its config says; a model that was trained "
        "with that repaired needs the dense model's own (100000 for DeepSeek-Coder)."))

    def inputs(self) -> dict[str, Path]:
        """The reference's model."""
        return {"model": find_model(self.model)}


_HERE = {config.stage: config for config in (
    PrepareStage, UpcycleStage, SftStage, MixStage, MergeStage, GenerateStage, EvaluateStage, NllStage, LmEvalStage,
    ReportStage, CompareStage)}


def without(settings: dict[str, Any], section: str, fields: Iterable[str]) -> dict[str, Any]:
    """``settings`` without some fields of a section."""
    left_out = set(fields)
    return settings | {section: {name: value for name, value in settings[section].items() if name not in left_out}}


def without_untold(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a report without what none tells of its recipe: MLflow's experiment, where the model is registered,
    whether the machine was asked for its size, and how many processes trained."""
    settings = without(settings, "recipe", ("experiment", "registry", "check_fit"))
    return settings | {"recipe": without(settings["recipe"], "sft", PROCESS_FIELDS)}


def _model(name: str) -> dict[str, Callable[[], object]]:
    return {} if name == NOT_YET else {f"model {name}": partial(check_model, name)}


def _data(*paths: str | None) -> dict[str, Callable[[], object]]:
    return {f"data {path}": partial(check_data, path, is_data_file(path)) for path in paths if path is not None}


def lm_eval_version() -> str:
    """The installed version of lm-evaluation-harness. Raises DataError, saying what to install, without one."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise DataError(
            "Tasks of lm-eval need lm-evaluation-harness, which is not installed: pip install -c constraints.txt "
            "-e '.[lm-eval]'."
        ) from None


def _in_own_file(stage: str) -> type[StageConfig]:
    """The configuration of a stage that is not among those above: in the file of its name, xft_core/stages/<stage>.py."""
    found = vars(importlib.import_module(f"xft_core.stages.{stage}")).values()
    return next(item for item in found
                if isinstance(item, type) and issubclass(item, StageConfig) and getattr(item, "stage", None) == stage)


# Last: the file of a stage may import from this one.
STAGES: dict[str, type[StageConfig]] = {stage: _HERE.get(stage) or _in_own_file(stage) for stage in FACTS}
