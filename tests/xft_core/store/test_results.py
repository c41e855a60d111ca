"""Results: every field names its unit, flat names and types convert both ways, and older artifacts can be read."""

import importlib
import json
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import xft_core.store.results as room
from xft_core.data.tokenize import NOTED
from xft_core.errors import ArtifactError
from xft_core.reporting.run import comparison, multilingual
from xft_core.reporting.variants import summary as variants
from xft_core.store.results.base import Metrics, Result, ResultFile
from xft_core.store.results.evaluate import EvaluateMetrics, EvaluationFile
from xft_core.store.results.lm_eval import LmEvalMetrics
from xft_core.store.results.merge import MergeMetrics
from xft_core.store.results.mix import CoefficientsFile
from xft_core.store.results.prepare import PrepareMetrics, ResponseEndFile
from xft_core.store.results.sft import SftMetrics

UNITS = {
    "count", "fraction, 0 to 1", "nats", "nats per response token", "nats, count", "seconds", "MiB", "tokens per second",
    "problems per minute", "no unit", "ratio", "its own unit", "its own unit, which the title names", "as each name says",
    "difference of fractions, -1 to 1", "sha256", "text", "text or number", "yes or no", "token ids", "names and versions",
    "seconds and MiB, as each name says", "each metric's own, mostly a fraction, 0 to 1",
    "pass@k: fraction, 0 to 1; nll: nats per response token; others: count"}


def subclasses(kind: type[BaseModel]) -> list[type[BaseModel]]:
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
    return [item for direct in kind.__subclasses__() for item in (direct, *subclasses(direct))]


@dataclass(frozen=True)
class Artifact:
    stage: str
    metrics: dict[str, Any]


def models_of(module: ModuleType) -> list[type[BaseModel]]:
    return [item for name, item in vars(module).items() if not name.startswith("_") and isinstance(item, type)
            and issubclass(item, BaseModel) and item.__module__ == module.__name__]


ALL = [*subclasses(Result), *models_of(comparison), *models_of(multilingual), *models_of(variants)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_field_says_what_it_is_and_its_unit(kind: type[BaseModel]) -> None:
    assert kind.model_config["frozen"]
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} has no description"
        if any(f"{part.__module__}.{part.__name__}" in repr(field.annotation) for part in ALL):
            continue  # its nested fields have units
        unit = re.search(r"\[([^\]]+)\]$", field.description)
        assert unit and unit[1] in UNITS, f"{kind.__name__}.{name} says no known unit: {field.description!r}"


def test_there_is_something_to_walk() -> None:
    assert len(subclasses(Metrics)) > 12 and len(subclasses(ResultFile)) > 6 and len(ALL) > 50


def test_a_misspelt_number_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="held_out_nl"):
        MergeMetrics(parameters=1, held_out_nl=0.5)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        _ = MergeMetrics(parameters=1, held_out_nll=0.5).held_out_nl  # type: ignore[attr-defined]


def test_numbers_with_names_of_their_own_come_back() -> None:
    flat = {"base_pass_at_1": 0.5, "base_pass_at_10": 0.75, "plus_pass_at_1": 0.25, "plus_pass_at_10": 0.5,
            "plus_interval_low": 0.1, "plus_interval_high": 0.4, "problems": 4, "samples": 40, "infrastructure_errors": 0,
            "pass_at_1/pandas": 0.5, "seconds": 1.5}
    metrics = EvaluateMetrics.of(Artifact("evaluate", flat))
    assert metrics.base_pass_at == {1: 0.5, 10: 0.75} and metrics.plus_pass_at_1 == 0.25
    assert metrics.pass_at_1_of_group == {"pandas": 0.5} and metrics.skipped is None
    assert metrics.flat() == flat
    scores = {"acc": 0.5, "acc_standard_error": 0.1, "part/acc": 0.5, "questions": 6}
    assert LmEvalMetrics.of(Artifact("lm_eval", scores)).scores == {name: scores[name] for name in list(scores)[:3]}
    assert LmEvalMetrics.of(Artifact("lm_eval", scores)).flat() == scores


def test_rows_are_told_from_those_of_a_held_out_file_and_other_versions_counts_are_kept() -> None:
    counts = {"rows_read": 5, "held_out_rows_read": 2, "held_out_rows": 2, "train_rows": 3, "dropped_by_a_later_version": 1}
    metrics = PrepareMetrics.of(Artifact("prepare", counts))
    assert (metrics.rows_read, metrics.held_out_rows, metrics.held_out_file) == (5, 2, {"rows_read": 2})
    assert metrics.others == {"dropped_by_a_later_version": 1} and metrics.flat() == counts


def test_all_that_is_noted_of_rows_has_a_field() -> None:
    assert NOTED.keys() <= PrepareMetrics.model_fields.keys()


def test_what_an_earlier_version_lacks_is_none_and_what_another_adds_is_ignored() -> None:
    metrics = SftMetrics.of(Artifact("sft", {"steps": 4, "held_out_nll": float("nan"), "tokens": 12}))
    assert metrics.router_entropy is None and metrics.held_out_nll != metrics.held_out_nll
    assert metrics.finite().held_out_nll is None and metrics.finite().steps == 4


@pytest.mark.parametrize("value", ["0.5", True, [0.5], {"value": 0.5}])
def test_a_number_that_is_none_is_an_error_that_names_it(value: object) -> None:
    with pytest.raises(ArtifactError, match=r"merge artifact.*held_out_nll"):
        MergeMetrics.of(Artifact("merge", {"held_out_nll": value}))


def test_a_file_is_written_as_it_was_read_whatever_is_absent(tmp_path: Path) -> None:
    layers: list[dict[str, Any]] = [{"weights": [0.5, 0.5]}, {"weights": [1, 0], "movement": None}]
    content = {"method": "ewa", "shared_expert": False, "layers": layers}
    (tmp_path / "coefficients.json").write_text(json.dumps(content, indent=1))
    before = (tmp_path / "coefficients.json").read_text()
    found = CoefficientsFile.read(tmp_path)
    assert found and found.layers[0].movement is None
    found.write(tmp_path)
    assert (tmp_path / "coefficients.json").read_text() == before.replace("   1,", "   1.0,").replace("   0\n", "   0.0\n")
    assert EvaluationFile.read(tmp_path) is None


@pytest.mark.parametrize("content", [
    "", "[]", "{", '{"token_ids": ["1"]}', '{"token_ids": [true]}', '{"token_ids": null}', "{}"])
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "response_end.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"response_end\.json"):
        ResponseEndFile.read(tmp_path)
