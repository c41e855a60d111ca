"""The study stage: judge the ladder of claims, using only the published reports of the study's runs.

Writes ``study.json``, ``study.md``, ``losses.json`` (every row's loss) and ``plots/*.png``. The same reports give the same
bytes.
"""

from xft_core.recipe.study import reported_runs
from xft_core.reporting.study.ladder import StudyResult, choose, judge
from xft_core.reporting.study.markdown import study_markdown
from xft_core.reporting.study.plots import draw_study
from xft_core.reporting.study.reports import reported, tuned
from xft_core.stages.configs import StudyStage
from xft_core.store.results.study import RawLossesFile, StudyMetrics
from xft_core.store.workspace import Workspace


def run(config: StudyStage, workspace: Workspace) -> StudyMetrics:
    """Run the stage. Raises ArtifactError for reports without row losses, or measured on different rows."""
    study, recipe = config.study, config.recipe
    choices = tuned(study, recipe, config.reports)
    _, runs = reported_runs(study, recipe, {arm: choose(found) for arm, found in choices.items()})
    measured, tokens_R = reported(study, runs, config.reports)
    result = judge(study, measured, tokens_R, choices)
    text = result.model_dump_json(indent=1) + "\n"
    (workspace.output / StudyResult.file_name).write_text(text, encoding="utf-8")
    RawLossesFile(tokens=tokens_R.tolist(), losses={
        arm: {str(seed): item.loss_R.tolist() for seed, item in seeds.items()} for arm, seeds in measured.items()},
    ).write(workspace.output)
    plots = draw_study(result, workspace.output / "plots")
    (workspace.output / "study.md").write_text(study_markdown(result, study, plots, config.failures), encoding="utf-8")
    shown = [rung.verdict == "shown" for rung in result.ladder]
    found = sum(map(len, measured.values()))
    return StudyMetrics(
        arms=len(measured), runs=found, missing=len(study.arms) * len(study.seeds) - found, claims=len(result.ladder),
        claims_shown=[*shown, False].index(False))
