"""The deployment ``publish``, started as from Prefect's pages and executed by the worker of ``xft ui``."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ui.xft_ui import XftUi
from xft_core.files.digests import file_digest

pytestmark = pytest.mark.slow


def test_a_registered_version_goes_where_it_is_sent(ui: XftUi, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    name, target = "given-out", tmp_path / "released"
    made = ui.run_deployment("pipeline", recipe_file=str(write_recipe(seed=93)), overrides=[f"registry.name={name}"])
    ui.wait_for_state(made, "COMPLETED")
    run_id = ui.run_deployment("publish", model=f"models:/{name}@champion", directory=str(target), licence="apache-2.0")
    run = ui.wait_for_state(run_id, "COMPLETED", seconds=300)
    assert run["name"] == f"publish-models:/{name}@champion"
    assert set(ui.task_states(run_id).values()) == {"Completed"}
    merged = Path(ui.tracking_run(made).data.tags["xft.merged_model.path"])
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert file_digest(target / file) == file_digest(merged / file)
    assert "license: apache-2.0" in (target / "README.md").read_text()
    version = ui.tracking().get_model_version(name, "1")
    assert version.tags["xft.published.directory"] == str(target)
    # With only the model, as the automation starts it: the copy is written below the worker's home.
    ui.wait_for_state(ui.run_deployment("publish", model=f"models:/{name}/1"), "COMPLETED", seconds=300)
    assert (ui.home / "published" / f"{name}-1" / "model.safetensors").is_file()
    # Prefect reports an occupied destination and a missing version, and nothing changes.
    for fields, said in (({"model": f"models:/{name}/7", "directory": str(tmp_path / "none")}, "7"),
                         ({"model": f"models:/{name}/1", "directory": str(merged)}, "other contents"),
                         ({"model": f"models:/{name}/1", "directory": "released"}, "Give an absolute path")):
        failed = ui.wait_for_state(ui.run_deployment("publish", **fields), "FAILED", seconds=300)
        assert said in failed["state"]["message"], failed["state"]
        assert not [line for line in ui.log_lines(failed["id"]) if "Traceback" in line]
    assert not (tmp_path / "none").exists()
