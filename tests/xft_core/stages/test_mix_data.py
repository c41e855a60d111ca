"""Sources prepared separately, then mixed: rows add up, weights decide, and held-out rows are never trained on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.factories import dense_model
from xft_core.data.mixture import Source, apportioned, rows_of_sources
from xft_core.data.rows import load_rows
from xft_core.errors import DataError, RecipeError
from xft_core.recipe.grid import expand
from xft_core.recipe.load import parse
from xft_core.recipe.sections import DataConfig, Recipe, SourceConfig
from xft_core.recipe.steps import pipeline_steps
from xft_core.stages.configs import STAGES, PrepareStage
from xft_core.stages.configs.parts import OwnRows
from xft_core.stages.mix_data import _Prepared
from xft_core.stages.own_rows import own_rows
from xft_core.stages.run import StageResult, run_stage

DOMAINS = {"code": 60, "law": 40, "math": 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a model, and rows of three domains; code and law have one row in common."""
    root = tmp_path_factory.mktemp("mixture")
    dense_model(root / "model")
    for name, number in DOMAINS.items():
        rows = [{"question": f"{name} {index}?", "answer": f"{name} says {index}"} for index in range(number)]
        rows += [{"question": "both?", "answer": "yes"}] if name != "math" else []
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def recipe(root: Path, data: dict[str, Any] | None = None, **sources: dict[str, Any]) -> Recipe:
    listed = [{"path": str(root / f"{name}.jsonl"), "domain": name} | sources.get(name, {}) for name in DOMAINS]
    return parse(Recipe, {"data": {"sources": listed, "held_out_rows": 5, "max_length": 256} | (data or {}),
                          "evaluate": {"benchmarks": []}})


def mixed(root: Path, of: Recipe) -> tuple[Path, dict[str, Any], list[StageResult]]:
    """Run the steps up to the mixture; return its directory, its metrics, and the steps' results."""
    results: list[StageResult] = []
    places: dict[str, Path] = {}
    for step in pipeline_steps(of):
        if step.stage in ("prepare", "mix_data"):
            fields = step.fields(str(root / "model"), lambda role: str(places[role]))
            draft = STAGES[step.stage](output=root, **fields)
            places[step.role] = root / "store" / f"{step.role}-{abs(hash(draft.model_dump_json()))}"
            results.append(run_stage(draft.model_copy(update={"output": places[step.role]})))
    return places["prepare"], results[-1].manifest.metrics, results


def domains(directory: Path, split: str) -> Counter[str]:
    lines = (directory / f"{split}.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["messages"][0]["content"].partition(" ")[0] for line in lines)


def test_rows_add_up_and_nothing_held_out_is_trained_on(root: Path) -> None:
    directory, counts, _ = mixed(root, recipe(root))
    assert counts["rows_read"] == 122
    assert counts["rows_read"] == sum(
        value for name, value in counts.items()
        if name.startswith("dropped_") or name in ("not_used", "held_out_rows", "train_rows"))
    assert len(load_rows(directory, "train")) == counts["train_rows"]
    held, trained = ((directory / f"{split}.jsonl").read_text().splitlines() for split in ("held_out", "train"))
    assert len(held) == counts["held_out_rows"] and not set(held) & set(trained) and len(set(trained)) == len(trained)
    mixture = json.loads((directory / "mixture.json").read_text())
    for source in mixture["sources"]:
        assert source["rows_read"] == source["dropped"] + source["held_out"] + source["reserved"] + source["available"]
        assert source["used"] == source["taken"] == source["available"]
    names = [list(DOMAINS)[place] for place in mixture["held_out"]]
    of_rows = [json.loads(line)["messages"][0]["content"].partition(" ")[0] for line in held]
    assert all(name == told or told == "both?" for name, told in zip(names, of_rows, strict=True))


def test_a_changed_weight_prepares_nothing_again_and_holds_out_the_same(root: Path) -> None:
    first, _, _ = mixed(root, recipe(root, code={"weight": 2}, law={"weight": 1}, math={"weight": 1}))
    second, counts, results = mixed(root, recipe(root, code={"weight": 1}, law={"weight": 0}, math={"weight": 3}))
    assert [result.reused for result in results] == [True, True, True, False]
    for name in ("held_out.safetensors", "held_out.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    taken = domains(second, "train")
    assert taken["law"] == 0 and taken["math"] == pytest.approx(3 * (taken["code"] + taken["both?"]), abs=3)
    assert counts["repeated_rows"] == counts["train_rows"] - len(set((second / "train.jsonl").read_text().splitlines()))
    assert domains(second, "held_out")["law"] > 0  # still measured


def test_replay_leave_out_and_rows(root: Path) -> None:
    replayed = recipe(root, {"replay": 0.2, "leave_out": "law"}, math={"replay": True}, code={"rows": 40})
    taken = domains(mixed(root, replayed)[0], "train")
    assert (taken["code"] + taken["both?"], taken["law"], taken["math"]) == (40, 0, 10)
    most = domains(mixed(root, recipe(root, {"max_rows": 30}))[0], "train")
    assert sum(most.values()) == 30 and most["code"] > most["law"] > most["math"]


def test_reserved_rows_are_of_every_source_and_apart(root: Path) -> None:
    directory, counts, _ = mixed(root, recipe(root, {"reserved_rows": 4}))
    reserved = domains(directory, "reserved")
    assert counts["reserved_rows"] == sum(reserved.values()) and {"code", "law", "math"} <= set(reserved)
    assert not set((directory / "reserved.jsonl").read_text().splitlines()) & set(
        (directory / "train.jsonl").read_text().splitlines())


def test_rows_of_pictures_are_not_mixed_without_their_pictures(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "manifest.json").write_text("{}")
    (tmp_path / "source" / "train.pictures.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="Rows with pictures cannot be mixed"):
        _Prepared(tmp_path / "source")


def test_one_file_twice_leaves_the_second_nothing(root: Path) -> None:
    twice = parse(Recipe, {"data": {"held_out_rows": 5, "max_length": 256, "sources": [
        {"path": str(root / "math.jsonl"), "domain": name} for name in ("one", "two")]}})
    assert twice.data.source_names == ["math.jsonl (1)", "math.jsonl (2)"]
    with pytest.raises(DataError, match=r"No row of the source .* is left to train on"):
        mixed(root, twice)


@pytest.mark.parametrize(("temperature", "expected"), [(1, [600, 300, 100]), (2, [454, 321, 185]), (1000, [334, 333, 333])])
def test_shares_are_to_the_power_of_the_inverse_temperature(temperature: float, expected: list[int]) -> None:
    sources = [Source(str(size), size) for size in (600, 300, 100)]
    found = rows_of_sources(sources, temperature, 0, 1000)
    assert sum(found) == 1000 and found == pytest.approx(expected, abs=40)
    ratio = (600 / 100) ** (1 / temperature)
    assert found[0] / found[2] == pytest.approx(ratio, rel=0.02)


def test_parts_are_whole_and_sum_up() -> None:
    assert apportioned([1, 1, 1], 10) == [4, 3, 3]
    assert apportioned([0.0, 5.0], 7) == [0, 7]


def test_sources_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"rows sum to 50, but data.max_rows leaves 20"):
        rows_of_sources([Source("a", 100, rows=50), Source("b", 10)], 1, 0, 20)
    with pytest.raises(DataError, match="No row of the source a is left"):
        rows_of_sources([Source("a", 0), Source("b", 10)], 1, 0, None)
    with pytest.raises(DataError, match="none is left to train on"):
        rows_of_sources([Source("a", 5, trained=False), Source("b", 10, replay=True)], 1, 0.1, None)


A, B = {"path": "a.jsonl", "domain": "a"}, {"path": "b.jsonl", "domain": "b"}


@pytest.mark.parametrize(("data", "message"), [
    ([A], "a section, not a list: give the list of sources as data.sources"),
    ({"sources": [A | {"weight": -1}]}, "data.sources.0.weight: .*greater than or equal to 0"),
    ({"sources": [A | {"weight": float("nan")}]}, "data.sources.0.weight: .*finite"),
    ({"sources": [A | {"weight": 0}]}, "no source is left to train on"),
    ({"sources": [A | {"weight": 1, "rows": 5}]}, "both given"),
    ({"sources": [A | {"rows": 0}]}, "data.sources.0.rows"),
    ({"sources": [A | {"weight": 1}, B]}, "only some sources have a weight"),
    ({"sources": [A | {"replay": True}]}, "nothing else to train on"),
    ({"sources": [A, B], "replay": 0.1}, "no source has replay"),
    ({"sources": [A, B | {"replay": True, "rows": 4}]}, "data.replay sets the share of replayed rows"),
    ({"replay": 0.1}, "data.sources is empty"),
    ({"sources": [A, B], "leave_out": "c"}, "leave_out is 'c', which is not a domain: choose from a, b"),
    ({"sources": [A], "leave_out": "a"}, "no source is left to train on"),
    ({"path": "c.jsonl", "sources": [A]}, "path .c.jsonl. and sources are both given"),
    ({"sources": [A], "held_out_path": "h.jsonl"}, "held_out_path is for a single path"),
    ({"sources": [A], "format": "text"}, "format is for a single path"),
    ({"sources": [A], "temperature": 0.7}, "data.temperature"),
    ({"sources": [A | {"fields": {"question": ""}}]}, "empty name"),
    ({"sources": [A | {"domain": "a|b"}]}, "data.sources.0.domain"),
    ({"sources": [A | {"benchmarks": ["mbpp"]}]},
     "the benchmarks of a.jsonl include 'mbpp', which is not in evaluate.benchmarks"),
    ({"sources": [A | {"wieght": 1}]}, "data.sources.0.wieght: there is no such field"),
])
def test_mixtures_that_mean_nothing_are_refused(data: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(Recipe, {"data": data})


def test_weights_of_sources_vary_in_a_comparison() -> None:
    base = parse(Recipe, {"data": {"sources": [A | {"weight": 1}, B | {"weight": 1}]}})
    variants = expand(base, ["data.sources.0.weight=[1,3]", "data.leave_out=[null,b]"])
    assert [variant.name for variant in variants] == [
        "weight=1 leave_out=null", "weight=1 leave_out=b", "weight=3 leave_out=null", "weight=3 leave_out=b"]
    assert [variant.recipe.data.sources[0].weight for variant in variants] == [1, 1, 3, 3]
    for wrong, message in (
            ("data.sources.7.weight=[1]", "2 sources, numbered from 0"), ("data.sources.0.wieght=[1]", "no such field")):
        with pytest.raises(RecipeError, match=message):
            expand(base, [wrong])


def test_a_stage_that_reads_one_source_refuses_a_mixture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a mixture, but this stage reads one path"):
        PrepareStage(output=tmp_path, data=DataConfig(sources=[SourceConfig(path="a.jsonl")]))


def test_a_source_is_prepared_as_it_would_be_alone() -> None:
    sources = [SourceConfig(**A, weight=2, licence="mit"), SourceConfig(**B, weight=1)]
    data = DataConfig(sources=sources, temperature=2, max_rows=9)
    assert data.of_source(0).recorded() == DataConfig(path="a.jsonl").recorded()


def test_a_training_may_be_on_the_rows_of_some_sources(root: Path) -> None:
    directory, _, _ = mixed(root, recipe(root))
    rows, lines = load_rows(directory, "train"), (directory / "train.jsonl").read_text().splitlines()
    by_source = [own_rows(directory, OwnRows(sources=[place]), seed=0) for place in range(len(DOMAINS))]
    assert sum(map(len, by_source)) == len(rows) == len(own_rows(directory, OwnRows(), seed=0))
    told = Counter(domains(directory, "train"))
    assert [len(of_source) for of_source in by_source] == [
        told[name] + (told["both?"] if name == "code" else 0) for name in DOMAINS]
    at = [index for index, line in enumerate(lines) if "math says" in line]
    for own, index in zip(range(len(at)), at, strict=True):
        assert by_source[2][own][0].tolist() == rows[index][0].tolist()
    assert len(own_rows(directory, OwnRows(sources=[0, 2]), seed=0)) == len(by_source[0]) + len(by_source[2])
    with pytest.raises(DataError, match=r"\[7\] give no training rows"):
        own_rows(directory, OwnRows(sources=[7]), seed=0)


def test_data_that_is_no_mixture_has_no_sources(root: Path, tmp_path: Path) -> None:
    config = DataConfig(path=str(root / "code.jsonl"), held_out_rows=5)
    run_stage(PrepareStage(output=tmp_path / "data", model=str(root / "model"), data=config))
    with pytest.raises(DataError, match="does not record the source"):
        own_rows(tmp_path / "data", OwnRows(sources=[0]), seed=0)
