"""Evaluation of one model, for real: Prefect API, MLflow, answers and verdicts."""

import json
from pathlib import Path

import pytest

from flows.evaluate_model import evaluate_model
from tasks.tracking import client
from xft_core.config import EvaluateConfig, GenerateConfig


@pytest.mark.usefixtures("prefect_api")
def test_a_model_is_evaluated_and_recorded(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(
        json.dumps({"instruction": f"Print {number}.", "response": f"print({number})"}) + "\n" for number in range(3)))
    scores = evaluate_model(
        experiment="evaluation", generate=GenerateConfig(max_new_tokens=4, precision="fp32"),
        evaluate=EvaluateConfig(max_problems=1, sandbox="unsafe", held_out_data=[str(other)]))
    assert scores["demo:benchmark.jsonl"]["problems"] == 1
    assert scores[str(other)]["rows"] == 3
    experiment = client().get_experiment_by_name("evaluation")
    assert experiment is not None
    runs = client().search_runs([experiment.experiment_id], "tags.`xft.kind` = 'evaluate'")
    assert [run.info.run_name for run in runs] == ["evaluate-demo-model"]
    assert runs[0].info.status == "FINISHED"
    assert 0 <= runs[0].data.metrics["benchmark/plus_pass_at_1"] <= 1
    assert runs[0].data.metrics["other/nll"] == scores[str(other)]["nll"] > 0
    assert runs[0].data.metrics["other/nll_standard_error"] > 0
    assert "upcycle.num_experts" not in runs[0].data.params
    names = {item.path for name in ("report", "samples/benchmark", "verdicts/benchmark")
             for item in client().list_artifacts(runs[0].info.run_id, name)}
    assert {"report/problems.html", "samples/benchmark/samples.jsonl", "verdicts/benchmark/results.json"} <= names
