"""A task of lm-evaluation-harness from a local directory: the real harness, the demo's model, no Hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xft_core.errors import DataError
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.configs import LmEvalStage, UpcycleStage
from xft_core.stages.configs.lm_eval import check_task_name
from xft_core.stages.lm_eval import _task
from xft_core.stages.preconditions import unmet
from xft_core.stages.run import run_stage

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: data/questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GROUP = """
group: both
task: [first, second]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
"""
QUESTIONS = [("What is 1 + 1?", [" 2", " a zebra in a hat"], 0), ("What is 2 + 2?", [" 4", " 3"], 0),
             ("Which keyword makes a function?", [" def", " banana split with cream"], 0)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    directory = tmp_path / "tasks"
    (directory / "data").mkdir(parents=True)
    for name in ("first", "second"):
        (directory / f"{name}.yaml").write_text(TASK.format(name=name))
    (directory / "both.yaml").write_text(GROUP)
    (directory / "data" / "questions.jsonl").write_text("".join(
        json.dumps({"question": question, "choices": choices, "answer": answer}) + "\n"
        for question, choices, answer in QUESTIONS))
    return directory


@pytest.mark.slow
def test_a_local_task_dense_and_upcycled_twice_the_same(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first = run_stage(LmEvalStage(output=tmp_path / "a", task="both", directory=tasks)).manifest
    again = run_stage(LmEvalStage(output=tmp_path / "b", task="both", directory=tasks)).manifest
    assert (first.digest, first.key, first.metrics) == (again.digest, again.key, again.metrics)
    assert 0 <= first.metrics["acc"] <= 1 and first.metrics["acc_standard_error"] > 0
    assert first.metrics["acc"] == first.metrics["first/acc"] == first.metrics["second/acc"]
    assert first.metrics["questions"] == 6
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["lm_eval"] == first.config["lm_eval"] and results["tasks"]["both"]["higher_is_better"] == {"acc": True}
    run_stage(UpcycleStage(output=tmp_path / "moe", upcycle=UpcycleConfig(num_experts=4, num_experts_per_tok=3)))
    moe = run_stage(LmEvalStage(output=tmp_path / "c", model=str(tmp_path / "moe"), task="both", directory=tasks)).manifest
    assert moe.metrics == first.metrics
    (tasks / "data" / "questions.jsonl").write_text(
        json.dumps({"question": "?", "choices": [" a", " b"], "answer": 1}) + "\n")
    assert LmEvalStage(output=tmp_path / "d", task="both", directory=tasks).input_digests() != first.parents


@pytest.mark.slow
def test_a_task_that_is_not_there_is_named(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task 'third'"):
        run_stage(LmEvalStage(output=tmp_path / "a", task="third", directory=tasks))


def test_a_task_that_is_not_there_is_found_before_a_run(tasks: Path, tmp_path: Path) -> None:
    def missing(task: str, directory: Path | None) -> list[str]:
        return [str(error) for error in unmet(LmEvalStage(output=tmp_path, task=task, directory=directory).preconditions())]

    assert not missing("both", tasks) and not missing("mmlu", tasks) and not missing("mmlu", None)
    assert missing("mmlu_with_a_typo", tasks) == [
        f"lm-eval has no task 'mmlu_with_a_typo' or in '{tasks}'. 'lm-eval ls tasks' lists those that it ships."]
    assert missing("first_of_nobody", None)


@pytest.mark.slow
def test_no_task_of_the_harness_is_refused_before_a_run() -> None:
    from lm_eval.tasks import TaskManager

    names = TaskManager().all_tasks
    assert len(names) > 10_000
    for name in names[::200]:
        check_task_name(name, None)


def test_data_that_is_not_there_is_named(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tasks / "data" / "questions.jsonl").unlink()
    with pytest.raises(DataError, match="'first' cannot be run"):
        run_stage(LmEvalStage(output=tmp_path / "a", task="first", directory=tasks))


@pytest.mark.slow
def test_nothing_else_imports_the_harness() -> None:
    code = "import sys, xft_core.stages.evaluate, xft_core.stages.report, flows.evaluate; print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_standard_error_of_a_filtered_metric_belongs_to_it() -> None:
    found = {
        "results": {"gsm8k": {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": 0.1, "alias": "gsm8k"}},
        "versions": {}, "n-shot": {}, "n-samples": {"gsm8k": {"effective": 9}},
        "higher_is_better": {"gsm8k": {"exact_match": True}}}
    task = _task(found, "gsm8k")
    assert task.metrics == {"exact_match_strict-match": 0.5, "exact_match_strict-match_standard_error": 0.1}
    assert task.higher_is_better == {"exact_match_strict-match": True}
