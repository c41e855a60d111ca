"""The study stage: judge the ladder of claims, using only the published reports of the study's runs.

Writes ``study.json``, ``study.md``, ``losses.json`` (every row's loss) and ``plots/*.png``. The same reports give the same
bytes.
"""

from xft_core.recipe.shared_trainings import shared_by_arms
from xft_core.recipe.study import reported_runs
from xft_core.reporting.study.ladder import StudyResult, chosen_settings, judge
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
    variants, runs = reported_runs(study, recipe, chosen_settings(choices))
    measured, tokens_R, lacking = reported(study, runs, config.reports)
    result = judge(study, measured, tokens_R, choices)
    text = result.model_dump_json(indent=1) + "\n"
    (workspace.output / StudyResult.file_name).write_text(text, encoding="utf-8")
    RawLossesFile(tokens=tokens_R.tolist(), losses={
        arm: {str(seed): item.loss_R.tolist() for seed, item in seeds.items()} for arm, seeds in measured.items()},
    ).write(workspace.output)
    plots = draw_study(result, workspace.output / "plots")
    limits = shared_by_arms(study, runs, variants)
    if lacking:
        limits.append(f"{len(lacking)} of the reported runs diverged (below, Failed runs). Their seeds are left out, which "
                      "favors the arms that diverged.")
    written = study_markdown(result, study, plots, config.failures | lacking, limits)
    (workspace.output / "study.md").write_text(written, encoding="utf-8")
    shown = [rung.verdict == "shown" for rung in result.ladder]
    found = sum(map(len, measured.values()))
    return StudyMetrics(
        arms=len(measured), runs=found, missing=len(study.arms) * len(study.seeds) - found, claims=len(result.ladder),
        claims_shown=[*shown, False].index(False))
