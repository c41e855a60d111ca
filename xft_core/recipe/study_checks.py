"""Find the problems of a study before any of its runs start."""

from xft_core.errors import RecipeError
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import model_places, rows_are_compared
from xft_core.recipe.study import StudyConfig, every_choice, tuning_runs


def check_study(study: StudyConfig, recipe: Recipe) -> None:
    """Raise RecipeError, with all problems in one message, for arms that their runs do not make, rows that are not measured,
    settings or arms that are the same, and choices without reserved rows."""
    wrong: list[str] = []
    variants, runs = every_choice(study, recipe)
    recipes = {variant.name: variant.recipe for variant in variants}
    made = {name: list(model_places(own)) for name, own in recipes.items()}
    models: dict[str, list[tuple[str, str]]] = {arm: [] for arm in study.arms}  # run and model of each setting
    for run in runs:
        own, model = recipes[run.variant], study.model_of(run.arm, run.choice)
        if model not in made[run.variant]:
            wrong.append(f"Arm {run.arm!r} is the model {model!r}, which its run does not make. Its models are: "
                         f"{', '.join(made[run.variant])}.")
        if not rows_are_compared(own):
            wrong.append(f"Arm {run.arm!r}: no losses by row are measured. Set evaluate.compare_rows: true in {study.recipe}.")
        if own.data != recipe.data:
            wrong.append(f"Arm {run.arm!r} changes the section data, but arms must be compared on the same rows.")
        if (run.variant, model) in models[run.arm]:
            wrong.append(f"Arm {run.arm!r} has a setting twice: {study.choices(run.arm)[run.choice]}. Give each value once.")
        models[run.arm].append((run.variant, model))
    wrong += [f"The arms {rung.lower!r} and {rung.than!r} are the same models of the same runs, so nothing can be claimed of "
              f"them: {rung.claim!r}. Change the overrides, the model or the tuning of one." for rung in study.ladder
              if set(models[rung.lower]) == set(models[rung.than])]
    if tuning_runs(study, recipe)[1] and not recipe.data.reserves_rows:
        wrong.append("The arms are tuned, but no rows are reserved for tuning: settings chosen on the reported rows cannot be "
                     f"reported on them. Set data.reserved_rows in {study.recipe}.")
    if wrong:
        lines = "\n".join(f"  - {line}" for line in dict.fromkeys(wrong))
        raise RecipeError(f"The study {study.name} cannot be judged:\n{lines}")
