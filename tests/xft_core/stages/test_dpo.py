"""Direct preference optimization: the loss by its equation, pairs from verdicts, a model that prefers answers that pass."""

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.factories import dense_model
from xft_core.data.row_writing import Row
from xft_core.data.rows import rows_of
from xft_core.models.loading import load_model
from xft_core.recipe.checks import preference_findings
from xft_core.recipe.sections import ChecksConfig, DataConfig, DpoConfig, EvaluateConfig, Recipe
from xft_core.recipe.steps import FACTS, is_measured, model_places, pipeline_steps
from xft_core.stages.configs import DpoStage, PrepareStage
from xft_core.stages.run import run_stage
from xft_core.store.artifacts import input_digest
from xft_core.store.results.dpo import DpoMetrics
from xft_core.training.preferences import Pairs, dpo_loss, log_chances_of, margins

DPO = DpoConfig(
    benchmark="own.jsonl", pairs_per_problem=4, epochs=6, batch_size=4, micro_batch_size=2, learning_rate=1e-3, warmup_steps=0,
    precision="fp32")


def test_the_loss_is_that_of_the_paper() -> None:
    log_p, log_q = torch.tensor([-3.0, -5.0, -2.0, -2.0]), torch.tensor([-4.0, -4.5, -2.0, -2.0])
    expected = [-math.log(1 / (1 + math.exp(-0.5 * ((-3 + 4) - (-5 + 4.5))))), math.log(2)]
    assert dpo_loss(margins(log_p, log_q), 0.5).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_response_has_the_log_probability_of_its_tokens(tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path), torch.float64)
    rows = [Row([5, 6, 7, 8], 2), Row([5, 6, 9], 2)]
    found = log_chances_of(model, Pairs(rows_of(rows)), batch_size=1)
    for row, value in zip(rows, found.tolist(), strict=True):
        log_p = model(torch.tensor([row.input_ids])).logits.log_softmax(-1)[0]
        expected = sum(float(log_p[place - 1, row.input_ids[place]]) for place in range(2, len(row.input_ids)))
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """Create a model, its data, a benchmark, and answers with verdicts. Of the first problem one answer passes and two fail, of
    the second all pass, of the third one fails and one was cut off."""
    model = dense_model(tmp_path / "model")
    run_stage(PrepareStage(output=tmp_path / "data", model=str(model), data=DataConfig(max_rows=20, max_length=256)))
    problems, samples, graded = [], [], []
    for number, answers in enumerate([
            [("return 1", "pass"), ("return 2", "fail"), ("pass", "timeout")], [("return 1", "pass"), ("return  1", "pass")],
            [("return 3", "fail"), ("return 4", "cut")]]):
        problems.append({
            "task_id": f"t/{number}", "prompt": f"def f{number}():\n    ", "entry_point": f"f{number}",
            "canonical_solution": "return 1", "base_input": [[]], "plus_input": [[]], "contract": "", "atol": 0})
        samples += [{
            "task_id": f"t/{number}", "sample_index": index, "prompt": "", "completion": completion, "solution": "",
            "finish_reason": "length" if verdict == "cut" else "stop", "new_tokens": 3}
            for index, (completion, verdict) in enumerate(answers)]
        verdicts = ["pass" if verdict == "cut" else verdict for _, verdict in answers]
        graded.append({"task_id": f"t/{number}", "samples": [{"base": verdict, "plus": verdict} for verdict in verdicts]})
    for name, lines in (("own.jsonl", problems), ("samples/samples.jsonl", samples)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "verdicts").mkdir()
    (tmp_path / "verdicts" / "results.json").write_text(json.dumps({"problems": graded}))
    return tmp_path


def stage(ready: Path, name: str, dpo: DpoConfig = DPO) -> DpoStage:
    return DpoStage(
        output=ready / name, model=str(ready / "model"), data=ready / "data", samples=ready / "samples",
        verdicts=ready / "verdicts", benchmark=str(ready / "own.jsonl"), prompt_style="completion", dpo=dpo)


def test_a_model_comes_to_prefer_its_answers_that_pass(ready: Path) -> None:
    metrics = run_stage(stage(ready, "dpo")).manifest.metrics
    assert (metrics["pairs"], metrics["problems_with_pairs"], metrics["problems_without_pairs"]) == (2, 1, 2)
    assert metrics["preferred"] == 1 and metrics["train_loss"] < math.log(2)
    before, after = (load_file(ready / name / "model.safetensors") for name in ("model", "dpo"))
    assert before.keys() == after.keys() and not all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_preferences_make_the_same_model(ready: Path) -> None:
    run_stage(stage(ready, "once"))
    run_stage(stage(ready, "again"))
    once, again = (load_file(ready / name / "model.safetensors") for name in ("once", "again"))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_answers_that_all_fail_leave_the_model_as_it_is(ready: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run of hours must not fail at its end. The model is identical to the merged one, so it shares its answers and
    verdicts."""
    results = json.loads((ready / "verdicts" / "results.json").read_text())
    for problem in results["problems"]:
        for sample in problem["samples"]:
            sample["plus"] = "fail"
    (ready / "verdicts" / "results.json").write_text(json.dumps(results))
    found = DpoMetrics.of(run_stage(stage(ready, "dpo")).manifest)
    assert (found.pairs, found.answers_passing, found.answers_failing, found.problems_without_pairs) == (0, 0, 6, 3)
    assert found.held_out_nll == found.held_out_nll_before is not None and found.preferred is None
    assert input_digest(ready / "dpo") == input_digest(ready / "model")
    sentence, = preference_findings(found, ChecksConfig())
    assert "none of the 3 problems" in sentence and "0 different answers passed, 6 failed" in sentence
    assert "easier problems" in sentence and sentence in caplog.text
    assert preference_findings(found, ChecksConfig(), only_stop=True) == []
    assert preference_findings(found, ChecksConfig(missing_material="stop"), only_stop=True) == [sentence]


def test_one_pair_is_enough(ready: Path) -> None:
    one = DpoConfig(**(DPO.model_dump() | {"pairs_per_problem": 1}))
    assert run_stage(stage(ready, "dpo", one)).manifest.metrics["pairs"] == 1


def test_dpo_is_a_row_of_its_own_where_it_is_asked_for() -> None:
    plain, with_dpo = Recipe(), Recipe(dpo=DPO)
    assert "dpo" not in plain.recorded() and "dpo" not in model_places(plain)
    assert [*model_places(with_dpo)][-1] == "dpo" and is_measured(with_dpo, "dpo")
    roles = [step.role for step in pipeline_steps(with_dpo)]
    assert {"generate_preferences", "evaluate_preferences", "dpo", "generate_dpo_0", "evaluate_dpo_0"} <= set(roles)
    assert roles.index("evaluate_preferences") < roles.index("dpo") < roles.index("generate_dpo_0")
    assert "dpo" in FACTS


def test_preferences_on_a_reported_benchmark_are_refused() -> None:
    with pytest.raises(ValidationError, match="measured on the problems"):
        Recipe(dpo=DpoConfig(benchmark="a.jsonl"), evaluate=EvaluateConfig(benchmarks=["a.jsonl"]))
