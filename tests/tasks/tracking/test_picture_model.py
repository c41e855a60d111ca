"""A model that reads pictures, as MLflow sees it: a directory without flavors, which would load it as a text model."""

from pathlib import Path
from types import SimpleNamespace

from mlflow.models import Model

from tasks.tracking.model import write_beside
from tests.factories import picture_model
from xft_core.recipe.sections import Recipe


def test_a_model_that_reads_pictures_gets_no_flavor_of_text(tmp_path: Path) -> None:
    model, beside = picture_model(tmp_path / "model"), tmp_path / "beside"
    beside.mkdir()
    run = SimpleNamespace(mlflow_run_id="0" * 32, recipe=Recipe())
    write_beside(beside, run, model)  # type: ignore[arg-type]  # it reads nothing else of a run
    assert Model.load(str(beside)).flavors == {} and [path.name for path in beside.iterdir()] == ["MLmodel"]
