"""The configuration of the lm_eval stage: its fields, its inputs, and the settings that change its result."""

from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.errors import DataError
from xft_core.files.digests import directory_digest
from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import model_needed
from xft_core.stages.preconditions import Preconditions, check_directory
from xft_core.store.artifacts import input_digest

NO_TASKS = {".py", ".pyc", ".md", ".jpg"}  # tasks are in YAML files, some of them without a suffix


class LmEvalStage(StageConfig):
    summary = "Run one task of lm-evaluation-harness, for example MMLU."

    stage, version, implementation = "lm_eval", 3, "xft_core.stages.lm_eval"
    path_fields = frozenset({"model", "directory"})

    model: str = Field("demo:model", description="Any model: dense, upcycled, tuned or merged.")
    task: str = Field(description="Name of a task or task group.")
    directory: Path | None = Field(None, description=(
        "Directory with the YAML files of your own tasks. Paths of data files in them are relative to this directory."))
    limit: int | None = Field(None, ge=1, description="Number of questions to answer, from the first on; empty for all.")
    batch_size: int = Field(16, ge=1, description="Number of questions answered at once.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")
    seed: Seed = Field(0, description="Seed for choosing the examples in the prompt, if the task has any.")

    def preconditions(self) -> Preconditions:
        """The model, the harness, the task and, if given, the task directory."""
        task = partial(check_task_name, self.task, self.directory)
        found: Preconditions = model_needed(self.model)
        found = {**found, "lm-eval": lm_eval_version, f"lm-eval's task {self.task}": task}
        if self.directory:
            found["lm_eval_directory"] = partial(check_directory, "evaluate.lm_eval_directory", self.directory)
        return found

    def inputs(self) -> dict[str, Path]:
        """The model and, if given, the task directory."""
        return {"model": find_model(self.model)} | ({"tasks": self.directory} if self.directory else {})

    def input_digests(self) -> dict[str, str]:
        """Digest of every input, by name. The digest of the task directory covers all files in it."""
        digests = {"model": input_digest(self.inputs()["model"])}
        if self.directory:
            files = [path for path in self.directory.rglob("*") if path.is_file()]
            digests["tasks"] = directory_digest(self.directory, files)
        return digests

    def settings(self) -> dict[str, Any]:
        """The fields and the harness's version. Raises DataError if the harness is not installed."""
        return super().settings() | {"precision": measuring_precision(self.precision), "lm_eval": lm_eval_version()}


def lm_eval_version() -> str:
    """Return the installed version of lm-evaluation-harness. Raises DataError with install instructions if there is none."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise DataError(
            "Tasks of lm-eval need lm-evaluation-harness, which is not installed: pip install -c constraints.txt "
            "-e '.[lm-eval]'."
        ) from None


def check_task_name(task: str, directory: Path | None) -> None:
    """Check that the name occurs in a file of the harness's tasks, or of ``directory``. Raises DataError if it does not.

    The harness itself takes more than a minute to index its 15,000 tasks. This check only searches their files for the name: a
    name that occurs in none of them is not a task. A name that occurs for another reason is rejected later, by the stage.
    """
    spec = find_spec("lm_eval")  # not imported: that loads torch
    if spec is None or not spec.submodule_search_locations:  # lm_eval_version says so
        return
    name = task.encode()
    for place in filter(None, [directory, Path(spec.submodule_search_locations[0]) / "tasks"]):
        for path in place.rglob("*"):
            if path.suffix not in NO_TASKS and path.is_file() and name in path.read_bytes():
                return
    raise unknown_task(task, directory)


def unknown_task(task: str, directory: Path | None) -> DataError:
    """Return the error for an unknown task name."""
    own = f" or in {str(directory)!r}" if directory else ""
    return DataError(f"lm-eval has no task {task!r}{own}. 'lm-eval ls tasks' lists those that it ships.")
