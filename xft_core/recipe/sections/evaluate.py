"""The recipe's section evaluate."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from xft_core.recipe.sections.base import Section


class EvaluateConfig(Section):
    """Which benchmark, and how its answers are graded."""

    added: ClassVar[frozenset[str]] = frozenset({"compare_rows"})

    benchmarks: list[str] = Field(["demo:benchmark.jsonl"], description=(
        "Benchmarks: humaneval (HumanEval and HumanEval+ from evalplus's own cache), mbpp, multipl-e/js (and ts, java, cpp, "
        "rs, go, php, rb, lua, pl, sh), ds1000 (the files of these two in the directory XFT_BENCHMARKS), the path of a .jsonl "
        "or .jsonl.gz file in one of these forms, the folder of a task (docs/how-to/tasks.md), demo:benchmark.jsonl (80 "
        "problems), demo:benchmark_300.jsonl, or demo:tasks/extraction (sql, quantities). An empty list: no "
        "answers are generated, models are compared by their held-out loss."))
    max_problems: int | None = Field(None, ge=1, description="Only the first this many problems; empty for all.")
    min_time_limit: float = Field(4.0, gt=0, le=600, description="Shortest time limit for one test input, in seconds.")
    time_limit_factor: float = Field(4.0, ge=1, le=1000, description="Limit as a multiple of the reference's own time.")
    memory_limit_mb: int = Field(6144, ge=256, le=2**24, description="Memory one graded program may reserve, in MB.")
    workers: int | None = Field(None, ge=1, le=1024, description="Programs graded at once; empty: one per processor core.")
    sandbox: Literal["bubblewrap", "unsafe"] = Field("bubblewrap", description=(
        "Grading runs what a model wrote. bubblewrap contains it; unsafe runs it under evalplus's own guard "
        "alone, which does not restrict network, files or processes."))
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
    compare_rows: bool = Field(False, description=(
        "Measure the loss of every held-out row under every model, and report paired differences with their intervals over "
        "rows, and the training's tokens and floating-point work. Always on where the section baseline has rivals."))
