"""Input that a user writes: recipes, overrides, grids, stage configurations, the environment, names."""

import json
import os
import random
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz.target import target
from tests.fuzz.values import NAMES, YAML, changed, json_text, spoiled, value
from xft_core.errors import DataError, XftError


def _texts(rng: random.Random, content: dict[str, Any]) -> bytes:
    if rng.random() < 0.3:
        return rng.choice(YAML).encode("utf-8", "surrogatepass")
    if rng.random() < 0.7:
        text = yaml.safe_dump(changed(rng, content)).encode("utf-8", "surrogatepass")
    else:
        text = json_text(rng, content)
    return spoiled(rng, text) if rng.random() < 0.3 else text


def _recipe_fields() -> dict[str, Any]:
    from xft_core.recipe.sections import Recipe

    return Recipe().model_dump()


@target
def recipe(rng: random.Random, directory: Path) -> None:
    """Load a recipe file and the files it names."""
    from tasks.preflight import check_inputs
    from xft_core.recipe.load import load_recipe

    path = directory / "recipe.yaml"
    path.write_bytes(_texts(rng, _recipe_fields()))
    check_inputs(load_recipe(path))


@target
def override(rng: random.Random, directory: Path) -> None:
    """Parse an override, as in --set."""
    from tasks.preflight import check_inputs
    from xft_core.recipe.load import flatten, parse
    from xft_core.recipe.sections import Recipe

    field = rng.choice([*flatten(Recipe()), *NAMES, "sft", "a.b.c.d", ".", "=", "model.path.x"])
    text = rng.choice([*YAML, *NAMES, json.dumps(value(rng))])
    check_inputs(parse(Recipe, {}, [rng.choice([f"{field}={text}", field + text, text])]))


@target
def grid(rng: random.Random, directory: Path) -> None:
    """Expand a grid, as in --grid."""
    from xft_core.recipe.grid import expand
    from xft_core.recipe.load import flatten
    from xft_core.recipe.sections import Recipe

    known = flatten(Recipe())
    chosen = [rng.choice(list(known)) for _ in range(rng.choice([1, 1, 2]))]
    fields = ",".join(chosen)
    if rng.random() < 0.4:  # almost what a user would write
        now = [known[field] for field in chosen]
        steps = [now[0], 1] if len(chosen) == 1 else [now, [1, 2]]
        text = json.dumps(changed(rng, steps), default=str)
    else:
        text = rng.choice([*YAML, json.dumps([value(rng) for _ in range(rng.randrange(4))]), f"[{rng.choice(NAMES)}]", "[1,2]"])
    expand(Recipe(), [f"{fields}={text}"] * rng.choice([1, 1, 2]))


@target
def stage_config(rng: random.Random, directory: Path) -> None:
    """Read a stage's configuration and compute its key."""
    from xft_core.recipe.load import parse, read_yaml
    from xft_core.stages.configs import STAGES
    from xft_core.stages.run import stage_key

    stage = STAGES[rng.choice(["prepare", "upcycle", "sft", "mix", "merge", "generate", "evaluate", "nll"])]
    content = {name: field.get_default(call_default_factory=True) for name, field in stage.model_fields.items()
               if not field.is_required()}
    content = {name: item.model_dump() if hasattr(item, "model_dump") else item for name, item in content.items()}
    content |= {name: str(directory) for name, field in stage.model_fields.items() if field.is_required()}
    content["output"] = str(directory / "out")
    path = directory / "stage.json"
    path.write_bytes(_texts(rng, content))
    stage_key(parse(stage, read_yaml(path)))


@target
def environment(rng: random.Random, directory: Path) -> None:
    """Read settings from the environment."""
    from tasks import settings
    from tasks.object_store import bucket
    from xft_core.runtime.cores import cores

    names = ["XFT_HOME", "XFT_COMPUTE_SLOTS", "XFT_MLFLOW_COPY_LIMIT_MB", "XFT_STORE", "XFT_MLFLOW_UI_URL",
             "MLFLOW_TRACKING_URI", "XFT_S3_ENDPOINT_URL", "OMP_NUM_THREADS", "XFT_BENCHMARKS", "XDG_CACHE_HOME"]
    texts = [*NAMES, "http://[", "http://[::1", "http://a:b@c:99999999", "http://", "s3://aa", "s3://a..b/c", "s3://aaa//b",
             "9" * 5000, "-1", "0", "1e9", "٣", "²", "http://h:x", "https://u:p@h/..", "file:///x",
             "s3://u:p@host/x", " 1 ", "1,2"]
    before = dict(os.environ)
    try:
        for name in rng.sample(names, 2):
            text = rng.choice(texts).replace("\0", "")  # an environment variable cannot contain NUL or lone surrogates
            os.environ[name] = text.encode("utf-8", "replace").decode()
        settings.settings()
        bucket.store()
        cores()
        from xft_core.benchmarks.find import find_benchmark

        try:
            find_benchmark(rng.choice(["humaneval", "multipl-e/js", "ds1000"]))
        except DataError:  # the benchmark is not there
            pass
    finally:
        os.environ.clear()
        os.environ.update(before)


@target
def names(rng: random.Random, directory: Path) -> None:
    """Resolve names of models, data, benchmarks, outputs and objects that lead elsewhere."""
    from tasks.object_store.bucket import safe_name
    from tasks.object_store.models import _bucket
    from xft_core.benchmarks.find import find_benchmark
    from xft_core.files.disk import locked
    from xft_core.files.locate import find_file, is_there

    name = rng.choice(NAMES) + rng.choice(["", "", ".json", "/x", "\0"])
    for look in (find_file, find_benchmark, is_there):
        try:
            look(name)
        except XftError:
            pass
    try:
        with locked(directory / "inside" / name.replace("/", "_")[:3000]):
            pass
    except XftError:
        pass
    try:
        _bucket("s3://bucket/" + name)
    except XftError:
        pass
    assert (Path("/store") / safe_name(name)).is_relative_to("/store") and ".." not in name.split("/")
