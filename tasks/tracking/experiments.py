"""MLflow's experiments: created when first needed, with a description, and marked so that pages open on runs and models."""

from functools import lru_cache

from tasks.settings import settings
from tasks.tracking.client import client
from xft_core.errors import XftError

# Without it, MLflow's pages guess what an experiment is about, and show one without runs as GenAI evaluations.
KIND = {"mlflow.experimentKind": "custom_model_development"}
DESCRIPTION = "mlflow.note.content"
# Stages of a comparison's variants are in a separate experiment: the table of the comparison's experiment compares variants.
STAGES_EXPERIMENT = "/stages"
DESCRIPTIONS = {
    "pipeline": "Runs of the pipeline: base, SFT, Mixture-of-Experts and merged model of one recipe each, with a run for every "
                "stage below. **Models** ranks all models; **Views** has saved tables and charts.",
    "comparison": "Comparisons: a run for each comparison, and below it a run for each variant, with its loss while it trains. "
                  "**Views** has each comparison's charts, by expert count and by normalization; **Models** ranks all models.",
    "evaluate": "Evaluations of one model each: share of problems solved, held-out loss, every answer with its verdict.",
    "stages": "The stages of the variants of a comparison: curves, numbers, files. The comparison is in the experiment of the "
              "same name without `/stages`.",
}


def experiment_id(name: str, about: str) -> str:
    """Return the id of the experiment ``name``, creating it if needed. ``about``: the kind of its runs, for the description.

    Raises XftError if it was deleted.
    """
    found = client().get_experiment_by_name(name)
    if found is None:
        from mlflow.exceptions import MlflowException

        location = settings().mlflow_artifacts.as_uri() if settings().tracking_is_local else None
        try:
            client().create_experiment(name, artifact_location=location)
        except MlflowException:  # another run created it at the same time
            pass
        found = client().get_experiment_by_name(name)
        assert found is not None
    if found.lifecycle_stage != "active":
        raise XftError(f"The MLflow experiment {name!r} was deleted. Restore it there, or choose another experiment.")
    _describe(settings().tracking_uri, str(found.experiment_id), about)
    return str(found.experiment_id)


def show_newest(number: str, text: str) -> None:
    """Make the description end in ``text``, unless its owner wrote another one."""
    beginning = DESCRIPTIONS["comparison"]
    if client().get_experiment(number).tags.get(DESCRIPTION, beginning).startswith(beginning):
        client().set_experiment_tag(number, DESCRIPTION, f"{beginning}\n\n{text}")


@lru_cache(maxsize=256)
def _describe(tracking_uri: str, number: str, about: str) -> None:
    """Set missing tags only: the owner may change the description. Checked once per process."""
    tags = client().get_experiment(number).tags
    for key, value in (KIND | {DESCRIPTION: DESCRIPTIONS[about]}).items():
        if key not in tags:
            client().set_experiment_tag(number, key, value)
