"""Add a stage in two files: its own, and recipe/steps.py with its facts and its step. It then appears in the flow, the plan,
the preflight, MLflow and the report. The test adds it to a copy of the code and runs everything for real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import RECIPE, REPOSITORY

STAGE = '''
"""The count_words stage: how often some words stand in the instruction data."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import Field

from xft_core.files.locate import find_file
from xft_core.stages.base import StageConfig
from xft_core.store.results.base import Metrics
from xft_core.store.workspace import Workspace


class CountWordsMetrics(Metrics):
    words: int = Field(description="Words that were looked for [count]")
    found: int = Field(description="How often they were found, all together [count]")


class CountWordsStage(StageConfig):
    summary = "How often some words stand in the prepared data."
    stage, version, implementation = "count_words", 1, __name__
    path_fields = frozenset({"data", "words"})

    data: Path = Field(description="Directory that prepare published.")
    words: str = Field(description="File of words, one a line.")

    def preconditions(self) -> dict[str, Callable[[], object]]:
        return {f"words {self.words}": partial(find_file, self.words)}

    def inputs(self) -> dict[str, Path]:
        return {"data": self.data, "words": find_file(self.words)}


def run(config: CountWordsStage, workspace: Workspace) -> CountWordsMetrics:
    text = (config.data / "train.jsonl").read_text(encoding="utf-8")
    counts = {word: text.count(word) for word in config.inputs()["words"].read_text(encoding="utf-8").split()}
    (workspace.output / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    return CountWordsMetrics(words=len(counts), found=sum(counts.values()))
'''
FACTS = '    "count_words": StageFacts(heavy=False, planned="unknown", shown="counts", own_section=False),\n'
STEP = '    yield Step("count_words", "count_words", {{"data": data, "words": {words!r}}})\n'
LOOK = """
import sys
from tasks.tracking.client import client
parent, = [run for item in client().search_experiments() for run in client().search_runs([item.experiment_id])
           if run.data.tags["xft.kind"] == "pipeline"]
experiment = [parent.info.experiment_id]
of_run = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
run, = client().search_runs(experiment, f"{of_run} and tags.`xft.role` = 'count_words'")
print(run.info.run_name, run.info.status, run.data.metrics["final/words"], run.data.tags["xft.stage"])
print(*(item.path for item in client().list_artifacts(parent.info.run_id, "counts")))
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Return a copy of the code with one more stage."""
    root = tmp_path / "code"
    for name in ("flows", "tasks", "xft_core"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "xft_core" / "stages" / "count_words.py").write_text(STAGE.lstrip(), encoding="utf-8")
    steps = root / "xft_core" / "recipe" / "steps.py"
    text = steps.read_text(encoding="utf-8")
    for before, added in (('    "report": StageFacts(', FACTS),
                          ('    start = start_steps(recipe)', STEP.format(words=str(tmp_path / "words.txt")))):
        assert text.count(before) == 1
        text = text.replace(before, added + before)
    steps.write_text(text, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return root


def call(code: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"XFT_HOME": str(code.parent / "home"), "PYTHONPATH": str(code)}
    for name in ("PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        environment.pop(name, None)
    return subprocess.run([sys.executable, *words], cwd=code, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_stage_of_one_file_and_one_step_is_part_of_everything(code: Path) -> None:
    recipe, words = str(code.parent / "recipe.yaml"), code.parent / "words.txt"

    planned = call(code, "-m", "flows.cli", "plan", recipe)
    assert planned.returncode == 0, planned.stderr
    assert any(line.startswith("count_words ") for line in planned.stdout.splitlines()), planned.stdout
    assert str(words) in planned.stdout  # the missing file

    refused = call(code, "-m", "flows.cli", "run", recipe)
    assert refused.returncode == 2 and str(words) in refused.stderr, refused.stderr

    words.write_text("def\nreturn\n", encoding="utf-8")
    done = call(code, "-m", "flows.cli", "run", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "count-words" in done.stdout + done.stderr  # the name of its task run

    look = call(code, "-c", LOOK)
    assert look.returncode == 0, look.stderr
    run, files = look.stdout.splitlines()[-2:]
    assert run == "count-words FINISHED 2.0 count_words"
    assert files == "counts/counts.json counts/manifest.json"

    report, = (code.parent / "home" / "artifacts" / "report").glob("*/comparison.md")
    section = report.read_text(encoding="utf-8").partition("## Further stages\n")[2]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    assert ["count_words", "words", "2"] in cells
    card = (report.parent / "README.md").read_text(encoding="utf-8")
    assert "| count_words " in card.partition("## Lineage")[2]

    again = call(code, "-m", "flows.cli", "run", recipe)
    assert again.returncode == 0 and "(13 of 13 stages reused)" in again.stdout, again.stdout + again.stderr
