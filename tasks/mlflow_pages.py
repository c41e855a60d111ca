"""Addresses in MLflow's pages, and of runs in Prefect's.

Each names the workflow type: without ``workflowType``, MLflow 3 opens a run among GenAI evaluations, with neither runs nor
models in its menu. MLflow's router reads it after the ``#``.
"""

import json
import re
from urllib.parse import quote

WORKFLOW = "workflowType=machine_learning"
_FILE_BESIDE = re.compile(r"\]\(((?:plots/)?[\w.-]+\.(?:png|html|json))\)")


def first_page(mlflow_ui: str) -> str:
    """All experiments. ``mlflow_ui``, here and below: address of MLflow's server without a trailing slash."""
    return _address(mlflow_ui, "/experiments")


def run_page(mlflow_ui: str, experiment_id: str, run_id: str) -> str:
    """One run."""
    return _address(mlflow_ui, f"/experiments/{experiment_id}/runs/{run_id}")


def experiment_page(mlflow_ui: str, experiment_id: str) -> str:
    """The table of an experiment's runs."""
    return _address(mlflow_ui, f"/experiments/{experiment_id}/runs")


def models_page(mlflow_ui: str, experiment_id: str) -> str:
    """All models of an experiment's runs, sortable by any metric."""
    return _address(mlflow_ui, f"/experiments/{experiment_id}/models")


def version_page(mlflow_ui: str, name: str, version: int) -> str:
    """A version of a registered model, with its card."""
    return _address(mlflow_ui, f"/models/{quote(name, safe='')}/versions/{version}")


def prefect_run_page(prefect_ui: str, flow_run_id: str) -> str:
    """A run in Prefect's pages. ``prefect_ui``: their address without a trailing slash; empty if MLflow's pages share it."""
    return f"{prefect_ui}/runs/flow-run/{flow_run_id}"


def compare_page(mlflow_ui: str, experiment_id: str, run_ids: list[str]) -> str:
    """Parameters and metrics of some runs side by side."""
    return _address(mlflow_ui, "/compare-runs", f"runs={_json(run_ids)}", f"experiments={_json([experiment_id])}")


def charts_page(mlflow_ui: str, experiment_id: str, view_key: str) -> str:
    """An experiment's runs in a saved view, charts first."""
    return _address(
        mlflow_ui, f"/experiments/{experiment_id}/runs", f"viewStateShareKey={view_key}", "compareRunsMode=CHART")


def with_files(text: str, run_id: str, directory: str = "report", pages: str = "") -> str:
    """Make the Markdown's links to pictures and files lead to a run's ``directory``. ``pages``: address of MLflow's pages with
    a trailing slash; empty for text that is shown in them."""
    return _FILE_BESIDE.sub(
        lambda found: f"]({pages}get-artifact?path={quote(f'{directory}/{found[1]}', safe='')}&run_uuid={run_id})", text)


def _address(mlflow_ui: str, path: str, *query: str) -> str:
    return f"{mlflow_ui}/#{path}?{'&'.join([*query, WORKFLOW])}"


def _json(values: list[str]) -> str:
    return quote(json.dumps(values, separators=(",", ":")))
