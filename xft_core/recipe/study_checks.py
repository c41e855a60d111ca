"""Find the problems of a study before any of its runs start."""

from xft_core.errors import RecipeError
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import model_places, rows_are_compared
from xft_core.recipe.study import StudyConfig, reported_runs, tuning_runs


def check_study(study: StudyConfig, recipe: Recipe) -> None:
    """Raise RecipeError, with all problems in one message, for arms that their runs do not make, rows that are not measured,
    and choices without reserved rows."""
    wrong = []
    variants, runs = reported_runs(study, recipe, {})
    recipes = {variant.name: variant.recipe for variant in variants}
    for arm in study.arms:
        own = recipes[next(run.variant for run in runs if run.arm == arm)]
        models = list(model_places(own))
        wanted = dict.fromkeys(study.model_of(arm, choice) for choice in range(len(study.choices(arm))))
        wrong += [f"Arm {arm!r} is the model {model!r}, which its run does not make. Its models are: {', '.join(models)}."
                  for model in wanted if model not in models]
        if not rows_are_compared(own):
            wrong.append(f"Arm {arm!r}: no losses by row are measured. Set evaluate.compare_rows: true in {study.recipe}.")
        if own.data != recipe.data:
            wrong.append(f"Arm {arm!r} changes the section data, but arms must be compared on the same rows.")
    if tuning_runs(study, recipe)[1] and not recipe.data.reserves_rows:
        wrong.append("The arms are tuned, but no rows are reserved for tuning: settings chosen on the reported rows cannot be "
                     f"reported on them. Set data.reserved_rows in {study.recipe}.")
    if wrong:
        raise RecipeError(f"The study {study.name} cannot be judged:\n" + "\n".join(f"  - {line}" for line in wrong))
