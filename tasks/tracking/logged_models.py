"""MLflow's models and data sets: the Models tab of an experiment ranks the models of all its runs by metrics that belong to a
model and a data set.

All runs with the same model share one entry: runs that reuse an artifact, and all runs for their base model.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.references import PipelineRun
from tasks.settings import settings
from tasks.tracking.client import client
from xft_core.files.disk import locked

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

LONGEST_DIGEST = 36  # MLflow's column has no more
DIGEST = "xft.digest"


@dataclass(frozen=True)
class DataSet:
    """Data for training or measurement. ``context``: training, validation or evaluation; ``columns``: names and types (string,
    long, double) of a row's columns; ``profile``: counts."""

    name: str
    digest: str
    context: str
    source: str
    columns: dict[str, str]
    profile: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredModel:
    """One model of a run. ``kind``: base, sft, moe, merged or a rival; ``parameters``: what distinguishes it from others of its
    kind."""

    name: str
    kind: str
    digest: str
    made_here: bool
    parameters: dict[str, str]
    tags: dict[str, str]
    numbers: Sequence["Measured"]


@dataclass(frozen=True)
class Measured:
    """Metrics of a model on a data set; None for the model's own. ``run_id``: the run of the stage that measured them, not the
    pipeline's run, which has one metric of each name: here all models use the same names, so that they can be ranked."""

    run_id: str
    data_set: DataSet | None
    numbers: dict[str, float]


def log_data_sets(run_id: str, data_sets: Iterable[DataSet]) -> None:
    """Record the data sets as inputs of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types.schema import ColSpec, Schema

    client().log_inputs(run_id, datasets=[
        DatasetInput(
            Dataset(
                name=item.name, digest=item.digest[:LONGEST_DIGEST], source_type="local",
                source=json.dumps({"uri": item.source}), schema=json.dumps({"mlflow_colspec": Schema(
                    [ColSpec(kind, name) for name, kind in item.columns.items()]).to_dict()}),
                profile=json.dumps(item.profile)),
            [InputTag("mlflow.data.context", item.context)])
        for item in data_sets])


def log_models(run: PipelineRun, models: Sequence[MeasuredModel]) -> dict[str, str]:
    """Record the models of a run, with their metrics. Returns their ids in MLflow by kind."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput, LoggedModelStatus

    ids: dict[str, str] = {}
    outputs, inputs = list[str](), list[str]()
    with locked(settings().locks / f"models-{run.run_experiment_id}"):  # variants that share a model end at the same time
        for model in models:
            found = _known(run.run_experiment_id, model.digest)
            if found is None:
                found = client().create_logged_model(
                    run.run_experiment_id, name=model.name, source_run_id=run.mlflow_run_id, model_type=model.kind,
                    params=model.parameters, tags=model.tags | {DIGEST: model.digest})
                client().finalize_logged_model(found.model_id, LoggedModelStatus.READY)
            ids[model.kind] = found.model_id
            (outputs if model.made_here else inputs).append(found.model_id)
    _log_numbers(models, ids)
    # MLflow refuses an output that a run already has: this may be the second delivery, or two kinds may be the same model.
    noted = client().get_run(run.mlflow_run_id)
    has = {item.model_id for item in (*noted.outputs.model_outputs, *noted.inputs.model_inputs)}
    if new := [number for number in dict.fromkeys(outputs) if number not in has]:
        client().log_outputs(run.mlflow_run_id, [LoggedModelOutput(number, 0) for number in new])
        has |= {*new}
    if used := [number for number in dict.fromkeys(inputs) if number not in has]:
        client().log_inputs(run.mlflow_run_id, models=[LoggedModelInput(number) for number in used])
    return ids


def _known(experiment: str, digest: str) -> "LoggedModel | None":
    found = client().search_logged_models([experiment], f"tags.`{DIGEST}` = '{digest}'", max_results=1)
    return found[0] if found else None


def _log_numbers(models: Sequence[MeasuredModel], ids: dict[str, str]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for model in models:
        for item in model.numbers:
            of = {} if item.data_set is None else {
                "dataset_name": item.data_set.name, "dataset_digest": item.data_set.digest[:LONGEST_DIGEST]}
            client().log_batch(item.run_id, metrics=[
                Metric(name, value, now, 0, model_id=ids[model.kind], run_id=item.run_id, **of)
                for name, value in item.numbers.items()])
