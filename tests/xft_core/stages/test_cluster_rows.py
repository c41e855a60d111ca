"""Clusters of rows: similar prompts share a cluster, only the seed decides, none is empty; and trainings on one of them."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.factories import dense_model
from tests.xft_core.stages.test_sft import changed, ready  # noqa: F401  (a fixture)
from xft_core.data.rows import Row, load_rows, rows_of
from xft_core.errors import DataError
from xft_core.models.loading import load_model
from xft_core.stages.cluster_rows import clustered, prompt_embeddings
from xft_core.stages.configs import ClusterRowsStage, SftStage
from xft_core.stages.configs.parts import OwnRows
from xft_core.stages.own_rows import own_rows
from xft_core.stages.row_losses import training_work
from xft_core.stages.run import run_stage
from xft_core.store.results.cluster_rows import ClustersFile


def test_alike_points_go_together_and_no_cluster_is_empty() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    of_point = [0, 0, 1, 0, 2, 1, 1, 0, 0, 0]
    points = centres[of_point] + 0.1 * torch.randn(10, 2, generator=generator, dtype=torch.float64)
    labels, explained = clustered(points, 3, seed=5, where=Path("data"))
    assert labels == of_point and 0.99 < explained < 1
    assert clustered(points, 3, seed=5, where=Path("data")) == (labels, explained)
    assert sorted(set(clustered(points, 10, seed=0, where=Path("data"))[0])) == list(range(10))
    with pytest.raises(DataError, match="have 3 distinct prompts, too few for 4"):
        clustered(centres[of_point], 4, seed=0, where=Path("data"))


def test_an_embedding_is_the_prompts_mean_whatever_the_response_and_the_batch(tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path / "dense"), torch.float64)
    rows = rows_of([Row([5, 6, 7, 8, 9], 3), Row([5, 6, 7, 40], 3), Row([11, 12], 0)])
    found_ND = prompt_embeddings(model, rows)
    prompt_SD = model.base_model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state[0]
    assert (found_ND[0] - prompt_SD.mean(0)).abs().max() < 1e-12 and (found_ND[0] - found_ND[1]).abs().max() < 1e-12
    whole_SD = model.base_model(input_ids=torch.tensor([[11, 12]])).last_hidden_state[0]
    assert (found_ND[2] - whole_SD.mean(0)).abs().max() < 1e-12


def test_a_training_is_on_the_rows_of_its_cluster(ready: Path, tmp_path: Path) -> None:  # noqa: F811
    stage = ClusterRowsStage(output=tmp_path / "a", model=str(ready / "dense"), data=ready / "data", clusters=3)
    made = run_stage(stage).manifest
    assert run_stage(stage.model_copy(update={"output": tmp_path / "b"})).manifest.digest == made.digest
    found = ClustersFile.read(tmp_path / "a")
    assert found is not None and sum(found.sizes) == len(load_rows(ready / "data", "train")) and min(found.sizes) > 0
    assert made.metrics["smallest_cluster"] == min(found.sizes)
    parts = [own_rows(ready / "data", OwnRows(cluster=cluster), 0, tmp_path / "a") for cluster in range(3)]
    assert [len(part) for part in parts] == found.sizes
    tuned = SftStage(output=tmp_path / "sft", model=str(ready / "dense"), data=ready / "data", sft=changed(epochs=1),
                     clusters=tmp_path / "a", cluster=1)
    run_stage(tuned)
    tokens, flops = training_work(tmp_path / "sft", ready / "dense", ready / "data", tmp_path / "a")
    assert tokens == sum(parts[1].lengths()) and flops > 0
    with pytest.raises(DataError, match="does not record the cluster"):
        own_rows(ready / "data", OwnRows(cluster=0), 0, ready / "data")
    with pytest.raises(DataError, match="There is no cluster 7"):
        own_rows(ready / "data", OwnRows(cluster=7), 0, tmp_path / "a")
    with pytest.raises(ValidationError, match="cluster and clusters go together"):
        SftStage(output=tmp_path, model="m", data=tmp_path, cluster=1)
    with pytest.raises(ValidationError, match="part and cluster both choose rows"):
        OwnRows(part=(1, 2), cluster=0)
