"""Models by MLflow's addresses: the artifact they refer to, and their files if no store has the artifact."""

import logging
import threading
from pathlib import Path

import pytest

from tasks.execution import base_model
from tasks.tracking import model_source
from tasks.tracking.client import client
from tasks.tracking.model import log_model
from tests.tasks.tracking.test_registry import card, made, named, register  # noqa: F401  (fixtures)
from xft_core.demo import DEMO_DIR
from xft_core.errors import CheckpointError
from xft_core.files.locate import is_hub_name

logger = logging.getLogger("tests.model_source")


def test_a_version_is_found_by_alias_and_number_and_its_files_are_the_models_own(named, tmp_path: Path, card: Path) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    artifacts = made(tmp_path)
    log_model(named, artifacts["merge"].path, card)
    register(named, artifacts)
    name = named.recipe.name
    for address in (f"models:/{name}@champion", f"models:/{name}/1"):
        source = model_source.resolve(address)
        assert (source.stage, source.key, source.model) == ("merge", artifacts["merge"].key, "merged")
        directory = base_model.fetch(address, threading.Event(), logger)
        files = {path.name for path in directory.iterdir()}
        assert files == {path.name for path in artifacts["merge"].path.iterdir()} - {"manifest.json"}
        for path in (DEMO_DIR / "model").iterdir():
            assert (directory / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("address", "said"), [
    ("models:/nobody@champion", "has no models:/nobody@champion"), ("models:/nobody", "is not a model in MLflow"),
    ("runs:/" + "0" * 32, "has no runs:/"), ("runs:/latest", "is not a model in MLflow")])
def test_what_is_no_model_is_said(named, address: str, said: str) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    with pytest.raises(CheckpointError, match=said):
        base_model.check(address)


def test_a_run_that_made_no_model_is_said(named) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    assert client().get_run(named.mlflow_run_id)
    with pytest.raises(CheckpointError, match="is not a run that made a model"):
        base_model.check(f"runs:/{named.mlflow_run_id}")


def test_an_address_is_no_name_of_the_hub() -> None:
    assert not is_hub_name("models:/name@champion") and is_hub_name("owner/model@main")
