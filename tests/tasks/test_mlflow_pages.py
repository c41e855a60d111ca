"""Addresses in MLflow's pages; that MLflow's own router takes them is tested in a browser (tests/ui/test_landing.py)."""

import re
from pathlib import Path

from tasks import mlflow_pages

UI = "http://127.0.0.1:5000"


def test_every_address_names_the_kind_of_work_behind_the_hash() -> None:
    assert mlflow_pages.first_page(UI) == f"{UI}/#/experiments?workflowType=machine_learning"
    assert mlflow_pages.run_page(UI, "7", "a1") == f"{UI}/#/experiments/7/runs/a1?workflowType=machine_learning"
    assert mlflow_pages.compare_page(UI, "7", ["a1", "b2"]) == (
        f"{UI}/#/compare-runs?runs=%5B%22a1%22%2C%22b2%22%5D&experiments=%5B%227%22%5D&workflowType=machine_learning")
    assert mlflow_pages.charts_page(UI, "7", "comparison-01234567") == (
        f"{UI}/#/experiments/7/runs?viewStateShareKey=comparison-01234567&compareRunsMode=CHART&workflowType=machine_learning")


def test_files_beside_a_text_are_those_of_its_run() -> None:
    text = "![Loss](plots/loss.png) and [problems.html](problems.html), [page](https://a.example/x.png), [b](#c)"
    assert mlflow_pages.with_files(text, "a1") == (
        "![Loss](get-artifact?path=report%2Fplots%2Floss.png&run_uuid=a1) and "
        "[problems.html](get-artifact?path=report%2Fproblems.html&run_uuid=a1), [page](https://a.example/x.png), [b](#c)")


def test_no_other_module_makes_such_an_address() -> None:
    root = Path(mlflow_pages.__file__).parents[1]
    makers = [
        path.name for package in ("flows", "tasks", "xft_core") for path in (root / package).rglob("*.py")
        if re.search(r"#/|/experiments/|compare-runs", path.read_text(encoding="utf-8"))]
    assert makers == ["mlflow_pages.py"]
