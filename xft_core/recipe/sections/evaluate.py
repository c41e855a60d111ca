"""The recipe section evaluate."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from xft_core.recipe.sections.base import Section


class EvaluateConfig(Section):
    """The benchmarks, and how answers are graded."""

    added: ClassVar[frozenset[str]] = frozenset({"compare_rows"})

    benchmarks: list[str] = Field(["demo:benchmark.jsonl"], description=(
        "Benchmarks: humaneval (HumanEval and HumanEval+ from evalplus's own cache), mbpp, multipl-e/js (and ts, java, cpp, "
        "rs, go, php, rb, lua, pl, sh) and ds1000 (both read from the directory XFT_BENCHMARKS), the path of a .jsonl or "
        ".jsonl.gz file in one of these forms, the folder of a task (docs/how-to/tasks.md), demo:benchmark.jsonl (80 "
        "problems), demo:benchmark_300.jsonl, or demo:tasks/extraction (sql, quantities). With an empty list, no answers are "
        "generated, and models are compared by their held-out loss."))
    max_problems: int | None = Field(None, ge=1, description="Number of problems to use, the first ones; empty for all.")
    min_time_limit: float = Field(4.0, gt=0, le=600, description="Minimum time limit for one test input, in seconds.")
    time_limit_factor: float = Field(4.0, ge=1, le=1000, description=(
        "Time limit as a multiple of the reference solution's own time."))
    memory_limit_mb: int = Field(6144, ge=256, le=2**24, description="Memory that one graded program may reserve, in MB.")
    workers: int | None = Field(None, ge=1, le=1024, description="Programs graded in parallel; empty: one per processor core.")
    sandbox: Literal["bubblewrap", "unsafe"] = Field("bubblewrap", description=(
        "Grading runs model-written code. bubblewrap isolates it; unsafe runs it only under evalplus's own guard, which does "
        "not restrict network, files or processes."))
    ds1000_environment: Literal["pinned", "current"] = Field("pinned", description=(
        "Libraries that DS-1000 is graded with: pinned (the authors' versions, installed by python -m xft_core "
        "ds1000-environment) or current (the versions of this package; the scores differ and are not comparable with "
        "published ones)."))
    k: list[Annotated[int, Field(ge=1)]] = Field([1], min_length=1, description=(
        "Values of k for pass@k. Values above num_samples are left out."))
    held_out_data: list[str] = Field([], description=(
        "Instruction data (.json, .jsonl or .parquet files, Hub data sets) on which to measure every model's negative "
        "log-likelihood per response token, formatted as in the section data (template, max_length, split)."))
    lm_eval_tasks: list[str] = Field([], description=(
        "Tasks of lm-evaluation-harness to run, for example mmlu; needs the extra lm-eval."))
    lm_eval_directory: str | None = Field(None, description=(
        "Directory with the YAML files of your own tasks. Data files named in them are relative to this directory. Empty: "
        "only the tasks that lm-eval ships, most of which download their data from the Hub."))
    lm_eval_limit: int | None = Field(None, ge=1, description=(
        "Number of questions of a task to use, the first ones; empty for all."))
    compare_rows: bool = Field(False, description=(
        "Measure the loss of every held-out row under every model. The report then has paired differences with intervals "
        "over rows, and the tokens and floating-point work of each training. Always on if the section baseline has rivals."))
