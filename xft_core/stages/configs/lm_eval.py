"""The configuration of the lm_eval stage: its fields, its inputs, and which settings change its result."""

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

NO_TASKS = {".py", ".pyc", ".md", ".jpg"}  # tasks stand in YAML files, some of them without a suffix


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
        """The model, the harness, the directory of tasks and the task."""
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
        """The digests of every stage; that of the task directory covers all files in it."""
        digests = {"model": input_digest(self.inputs()["model"])}
        if self.directory:
            files = [path for path in self.directory.rglob("*") if path.is_file()]
            digests["tasks"] = directory_digest(self.directory, files)
        return digests

    def settings(self) -> dict[str, Any]:
        """The fields, and the harness's version. Raises DataError when it is not installed."""
        return super().settings() | {"precision": measuring_precision(self.precision), "lm_eval": lm_eval_version()}


def lm_eval_version() -> str:
    """The installed version of lm-evaluation-harness. Raises DataError, saying what to install, without one."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise DataError(
            "Tasks of lm-eval need lm-evaluation-harness, which is not installed: pip install -c constraints.txt "
            "-e '.[lm-eval]'."
        ) from None


def check_task_name(task: str, directory: Path | None) -> None:
    """That a file of the harness's tasks, or of ``directory``, has this name in it. Raises DataError.

    The harness itself takes more than a minute to know its 15,000 tasks. Their files are searched for the name here: what none
    of them contains is no task. A word that is in a file for another reason is found out by the stage.
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
    """The error for a name that no task has."""
    own = f" or in {str(directory)!r}" if directory else ""
    return DataError(f"lm-eval has no task {task!r}{own}. 'lm-eval ls tasks' lists those that it ships.")
