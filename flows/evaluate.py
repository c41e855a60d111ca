"""Evaluation of any one model: a directory, an S3 address, a Hub name, or an artifact of a pipeline run."""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from tasks.execution import pipeline_run
from tasks.preflight import check_inputs
from tasks.publishing.evaluation import Scores, publish_scores
from tasks.stages import local_base_model, submit
from xft_core.recipe.labels import short_name
from xft_core.recipe.load import parse
from xft_core.recipe.sections import EvaluateConfig, ExperimentName, GenerateConfig, ModelConfig, Recipe, Seed
from xft_core.recipe.steps import evaluation_steps

DEFAULTS = Recipe()
SECTIONS = frozenset({"name", "seed", "experiment", "model", "generate", "evaluate"})


def run_name() -> str:
    """Name a run after its model: ``evaluate-SmolLM2-135M``."""
    given = flow_run.parameters.get("model") or {}
    return f"evaluate-{short_name(str(given['path'] if isinstance(given, dict) else given.path))}"


@flow(name="evaluate", persist_result=False, flow_run_name=run_name)
def evaluate_model(
    model: ModelConfig = DEFAULTS.model,
    seed: Seed = DEFAULTS.seed,
    experiment: ExperimentName = "xft-evaluate",
    generate: GenerateConfig = DEFAULTS.generate,
    evaluate: EvaluateConfig = DEFAULTS.evaluate,
) -> Scores:
    """Have one model answer benchmarks and grade its answers. Measure its held-out loss and tasks of lm-eval on request.

    The store keeps answers and verdicts: a model that was evaluated with the same settings does not answer again.

    Args:
        model: Any model. Its path may also be a directory or S3 address that a pipeline run published (upcycle, sft,
            merge).
        seed: Seed of sampling.
        experiment: MLflow experiment the run belongs to.
        generate: How the model is prompted. Here prompt_style applies to every model (auto: magicoder), and base_prompt_style
            plays no part.
        evaluate: Benchmarks and grading.
    """
    style = "magicoder" if generate.prompt_style == "auto" else generate.prompt_style
    asked_one_way = generate.model_copy(update={"prompt_style": style, "base_prompt_style": style})
    recipe = parse(Recipe, {
        "name": short_name(model.path), "seed": seed, "experiment": experiment, "model": model,
        "data": {"template": "chat" if style == "chat" else "magicoder"},
        "generate": asked_one_way, "evaluate": evaluate})
    check_inputs(recipe, steps=evaluation_steps)
    with pipeline_run.opened(recipe, kind="evaluate", sections=SECTIONS) as run:
        futures: Any = submit(run, evaluation_steps(recipe), local_base_model(run))
        scores: Scores = publish_scores.submit(run, futures).result()
        return scores
