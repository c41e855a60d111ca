"""Everything that is missing is found before anything starts, and reported in one message."""

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from tasks.preflight import check_inputs
from tests.factories import dense_model
from xft_core.errors import CheckpointError, DataError, NotReady, RecipeError, SandboxError, XftError
from xft_core.recipe.load import parse
from xft_core.recipe.sections import EvaluateConfig, Recipe
from xft_core.recipe.steps import evaluation_steps, pipeline_steps
from xft_core.stages.configs import EvaluateStage, GenerateStage, NllStage, PrepareStage, UpcycleStage
from xft_core.stages.preconditions import _open_sandbox

NOWHERE = Path("/nowhere")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Simulate a machine with nothing installed."""
    for name in ("HUMANEVAL_OVERRIDE_PATH", "MBPP_OVERRIDE_PATH", "XFT_BENCHMARKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    _open_sandbox.cache_clear()


def recipe(*changes: str) -> Recipe:
    return parse(Recipe, {}, list(changes))


def test_a_recipe_that_lacks_nothing_passes() -> None:
    check_inputs(recipe("evaluate.sandbox=unsafe"))
    check_inputs(recipe("evaluate.sandbox=unsafe"), steps=evaluation_steps)


@pytest.mark.usefixtures("bare")
def test_a_sandbox_that_cannot_work_is_found_first() -> None:
    for steps in (pipeline_steps, evaluation_steps):
        with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
            check_inputs(recipe(), steps=steps)
    check_inputs(recipe("evaluate.sandbox=unsafe"))


@pytest.mark.usefixtures("bare")
def test_all_that_is_missing_is_one_message() -> None:
    lacking = recipe(
        "model.path=./no-model", "data.path=no-data.jsonl",
        "evaluate.benchmarks=[humaneval,mbpp,multipl-e/lua,none.jsonl]",
        "evaluate.held_out_data=[held.jsonl]", "evaluate.lm_eval_directory=./no-tasks", "evaluate.lm_eval_tasks=[one]")
    with pytest.raises(NotReady) as error:
        check_inputs(lacking)
    lines = str(error.value).splitlines()
    for part in ("model directory './no-model'", "'no-data.jsonl'", "xft fetch humaneval", "xft fetch mbpp",
                 "XFT_BENCHMARKS", "'none.jsonl'", "'held.jsonl'", "'no-tasks'", "apt-get install bubblewrap"):
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert lines[0].startswith(f"{len(lines) - 1} things")


@pytest.mark.usefixtures("bare")
def test_addresses_without_a_network_files_under_wrong_names_and_benchmarks_are_one_message(tmp_path: Path) -> None:
    with socket.socket() as nobody:  # bound, but not listening
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}/rows"
        for name, content in (("table.jsonl", b"question,answer\na,b\n"), ("lines.csv", b'{"question": "a", "answer": "b"}\n'),
                              ("plain.jsonl.gz", b"{}\n")):
            (tmp_path / name).write_bytes(content)
        held_out = [f"{address}.csv", *(str(tmp_path / name) for name in ("table.jsonl", "lines.csv", "plain.jsonl.gz"))]
        with pytest.raises(NotReady) as error:
            check_inputs(recipe(
                f"data.path={address}.jsonl", f"evaluate.held_out_data={held_out}", f"data.reserved_path={address}.zip",
                "evaluate.benchmarks=[humaneval,mbpp,HumanEval,ds1000]", "evaluate.sandbox=unsafe"))
    lines = str(error.value).splitlines()
    for part in (f"curl -LO '{address}.jsonl'", f"curl -LO '{address}.csv'", "must end in the name of a data file",
                 "table.jsonl' looks like a table. Give it a name that ends in .csv", "that ends in .jsonl", "is not gzip",
                 "xft fetch humaneval.", "xft fetch mbpp.", "xft fetch ds1000.", "no benchmark 'HumanEval'"):
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert lines[0] == "10 things that a run needs are missing:"


def test_an_environment_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.factories import shared_data

    file = shared_data("benchmarks/ds1000/ds1000.jsonl.gz")
    if not file.is_file():
        pytest.skip("the shared benchmarks are not here")
    monkeypatch.setenv("XFT_DS1000_ENVIRONMENT", str(tmp_path / "none"))
    with pytest.raises(NotReady) as error:
        check_inputs(recipe(f"evaluate.benchmarks=[{file}]", "data.path=none.jsonl", "evaluate.sandbox=unsafe"))
    assert "python -m xft_core ds1000-environment" in str(error.value) and "none.jsonl" in str(error.value)


def test_what_any_variant_lacks_is_in_the_message() -> None:
    variants = [recipe(f"data.path={name}.jsonl", "evaluate.sandbox=unsafe") for name in ("a", "b", "a")]
    with pytest.raises(NotReady) as error:
        check_inputs(*variants)
    assert str(error.value).count("'a.jsonl'") == str(error.value).count("'b.jsonl'") == 1


def test_a_model_that_cannot_be_a_gguf_file_is_found_first(tmp_path: Path) -> None:
    """It is not left to the last stage of a run that takes hours."""
    wanted = ("export.gguf=[q8_0]", "evaluate.sandbox=unsafe")
    check_inputs(recipe(*wanted, f"model.path={dense_model(tmp_path / 'fits')}"))
    with pytest.raises(CheckpointError, match="type 'phi3' cannot be written"):
        check_inputs(recipe(*wanted, f"model.path={dense_model(tmp_path / 'other', 'phi3')}"))
    slides = dense_model(tmp_path / "slides", "mistral")
    with pytest.raises(CheckpointError, match="sliding window of 16"):
        check_inputs(recipe(*wanted, f"model.path={slides}"))
    counted = "{% for message in messages %}{{ loop.index }} {{ message.role }}: {{ message.content }}\n{% endfor %}"
    (tmp_path / "fits" / "chat_template.jinja").write_text(counted)
    with pytest.raises(CheckpointError, match="Ollama template"):
        check_inputs(recipe(*wanted, f"model.path={tmp_path / 'fits'}", "data.template=chat"))


def test_a_merge_that_does_not_fit_the_model_is_found_first() -> None:
    for changes, said in ((("merge.method=uniform", "merge.search=cmaes"), "cmaes, which needs at least two numbers"),
                          (("merge.granularity=block", "merge.block_count=60000"), "block_count is 60000")):
        with pytest.raises(RecipeError, match=said):
            check_inputs(recipe(*changes, "evaluate.sandbox=unsafe"))
    with pytest.raises(RecipeError, match=r"search_over.*no shared expert"):
        recipe("merge.method=uniform", "merge.search=golden", "upcycle.shared_expert=false")


@pytest.mark.usefixtures("bare")
def test_preferences_that_nothing_here_can_grade_are_found_first(tmp_path: Path) -> None:
    file = tmp_path / "multipl-e" / "humaneval-lua.jsonl"
    file.parent.mkdir()
    file.write_text('{"name": "one", "language": "lua", "prompt": "-- One", "tests": "one()", "stop_tokens": []}\n')
    check_inputs(recipe(f"evaluate.benchmarks=[{file}]", "evaluate.sandbox=unsafe"))  # skipped, which the report says
    with pytest.raises(DataError, match="its toolchain is not on this machine"):
        check_inputs(recipe(f"dpo.benchmark={file}", "evaluate.sandbox=unsafe"))


def test_one_missing_thing_is_said_in_the_words_of_its_stage() -> None:
    with pytest.raises(XftError) as stage:
        UpcycleStage(output=NOWHERE, model="./none").inputs()
    with pytest.raises(type(stage.value)) as first:
        check_inputs(recipe("model.path=./none", "evaluate.sandbox=unsafe"))
    assert str(first.value) == str(stage.value)


def test_every_stage_that_takes_something_from_outside_says_what() -> None:
    model, benchmark, data = "demo:model", "demo:benchmark.jsonl", Recipe().data
    found = {
        "prepare": PrepareStage(output=NOWHERE, model=model, data=data, benchmarks=[benchmark]),
        "upcycle": UpcycleStage(output=NOWHERE, model=model),
        "generate": GenerateStage(output=NOWHERE, model=model, benchmark=benchmark),
        "evaluate": EvaluateStage(output=NOWHERE, samples=NOWHERE, benchmark=benchmark, evaluate=EvaluateConfig()),
        "nll": NllStage(output=NOWHERE, model=model, data=data)}
    assert {name: sorted(stage.preconditions()) for name, stage in found.items()} == {
        "prepare": [f"benchmark {benchmark}", f"data {data.path}", f"model {model}"],
        "upcycle": [f"model {model}"],
        "generate": [f"benchmark {benchmark}", f"model {model}"],
        "evaluate": [f"benchmark {benchmark}", f"grading {benchmark}", f"sandbox for {benchmark}"],
        "nll": [f"data {data.path}", f"model {model}"]}


class Hub(http.server.BaseHTTPRequestHandler):
    """A server that refuses as the Hub does: with a status and a code in a header."""

    REFUSALS: ClassVar = {
        "gated": (403, "GatedRepo"), "private": (401, "RepoNotFound"), "missing": (404, "RepoNotFound"),
        "old": (404, "RevisionNotFound"), "stranger": (401, ""), "forbidden": (403, ""), "broken": (500, "")}

    def do_HEAD(self) -> None:
        status, code = next(value for name, value in self.REFUSALS.items() if f"/{name}/" in self.path)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if not code:
            self.send_header("X-Error-Message", "Invalid username or password.")
        self.send_header("X-Request-Id", "Root=1-abc")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def hub() -> "object":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


ASK = """
import sys
from tasks.preflight import check_inputs
from xft_core.recipe.sections import Recipe
from xft_core.files.locate import find_model
from xft_core.stages.preconditions import check_data
from xft_core.data.sources import portions
from xft_core.recipe.sections import DataConfig
from xft_core.recipe.load import parse
for ask in (lambda: check_inputs(parse(Recipe, {}, [f"model.path={sys.argv[1]}", "evaluate.sandbox=unsafe"])),
            lambda: find_model(sys.argv[1]), lambda: check_data(sys.argv[1], is_file=False),
            *([] if "broken" in sys.argv[1] else [lambda: portions(DataConfig(path=sys.argv[1]), None)])):  # it tries for 23 s
    try:
        ask()
        print("passed")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("name", "message"), [
    ("gated/it", "access is restricted.* HF_TOKEN"),
    *(pytest.param(*both, marks=pytest.mark.slow) for both in (
        ("missing/it", "it does not exist there or is private.* HF_TOKEN"), ("broken/it", ""),
        ("private/it", "it does not exist there or is private.* HF_TOKEN"), ("old/it@v9", "there is no such revision"),
        ("stranger/it", "does not accept your token .Invalid username or password.. Correct or unset HF_TOKEN"),
        ("forbidden/it", r"access is denied \(Invalid username or password\). .*HF_TOKEN")))])
def test_what_the_hub_does_not_give(name: str, message: str, hub: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, name], capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert "Request ID" not in done.stdout and "Root=1" not in done.stdout and "Traceback" not in done.stderr
    if name.startswith("broken"):  # this may be temporary, so it is no reason to refuse a run
        model, model_by_stage, data = done.stdout.strip().splitlines()
        assert model == "passed" and model_by_stage.startswith("HubUnavailable") and data.startswith("HubUnavailable")
        return
    model, model_by_stage, data, data_by_stage = done.stdout.strip().splitlines()
    assert "connection" not in done.stdout
    assert model == model_by_stage and model.startswith("CheckpointError") and re.search(message, model)
    assert data == data_by_stage and data.startswith("DataError") and re.search(message, data)
    assert ("huggingface.co/gated/it," in model) == ("huggingface.co/datasets/gated/it," in data) == name.startswith("gated")
