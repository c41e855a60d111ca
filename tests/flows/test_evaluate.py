"""A real evaluation of one model: Prefect API, MLflow, answers and verdicts."""

import json
from pathlib import Path

import pytest

from flows.evaluate import evaluate_model
from tasks.tracking.client import client
from tests.tasks.environment import HOME
from tests.tasks.object_store.proxy import BUCKET, Proxy, raw_client
from xft_core.demo import DEMO_DIR
from xft_core.recipe.sections import EvaluateConfig, GenerateConfig, ModelConfig


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_model_is_evaluated_and_recorded(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(
        json.dumps({"instruction": f"Print {number}.", "response": f"print({number})"}) + "\n" for number in range(3)))
    scores = evaluate_model(
        experiment="evaluation", generate=GenerateConfig(max_new_tokens=4, precision="fp32"),
        evaluate=EvaluateConfig(max_problems=1, sandbox="unsafe", held_out_data=[str(other)]))
    assert scores["demo benchmark"]["problems"] == 1
    assert scores["NLL on other.jsonl"]["rows"] == 3
    experiment = client().get_experiment_by_name("evaluation")
    assert experiment is not None
    runs = client().search_runs([experiment.experiment_id], "tags.`xft.kind` = 'evaluate'")
    assert [run.info.run_name for run in runs] == ["evaluate-demo-model"]
    assert runs[0].info.status == "FINISHED"
    assert 0 <= runs[0].data.metrics["demo_benchmark/plus_pass_at_1"] <= 1
    assert runs[0].data.metrics["nll_on_other_jsonl/nll"] == scores["NLL on other.jsonl"]["nll"] > 0
    assert runs[0].data.metrics["nll_on_other_jsonl/nll_standard_error"] > 0
    assert "upcycle.num_experts" not in runs[0].data.params
    names = {item.path for name in ("report", "samples/demo_benchmark", "verdicts/demo_benchmark")
             for item in client().list_artifacts(runs[0].info.run_id, name)}
    assert {"report/problems.html", "samples/demo_benchmark/samples.jsonl", "verdicts/demo_benchmark/results.json"} <= names


@pytest.mark.usefixtures("prefect_api")
def test_a_model_at_an_s3_address_is_the_same_as_its_files_here(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its contents count: answers and verdicts of the demo model are reused."""
    monkeypatch.setenv("XFT_HOME", str(HOME))  # where the test above stored its work
    monkeypatch.delenv("XFT_STORE")

    def evaluate(path: str) -> set[str]:
        state = evaluate_model(
            model=ModelConfig(path=path), experiment="addresses", generate=GenerateConfig(max_new_tokens=4, precision="fp32"),
            evaluate=EvaluateConfig(max_problems=1, sandbox="unsafe"), return_state=True)
        assert state.is_completed(), state.message
        experiment = client().get_experiment_by_name("addresses")
        assert experiment is not None
        run, = client().search_runs(
            [experiment.experiment_id], f"tags.`xft.kind` = 'evaluate' and params.`model.path` = '{path}'")
        stages = client().search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        return {stage.data.tags["xft.reused"] for stage in stages}

    for file in (DEMO_DIR / "model").iterdir():
        raw_client(s3.target).put_object(Bucket=BUCKET, Key=f"models/mine/{file.name}", Body=file.read_bytes())
    evaluate("demo:model")
    assert evaluate(f"s3://{BUCKET}/models/mine") == {"true"}


@pytest.mark.usefixtures("prefect_api")
def test_an_s3_address_without_a_model_is_said_before_anything_starts(s3: Proxy) -> None:
    state = evaluate_model(model=ModelConfig(path=f"s3://{BUCKET}/nothing"), return_state=True)
    assert state.is_failed()
    assert f"There is no model at s3://{BUCKET}/nothing" in str(state.result(raise_on_failure=False))
