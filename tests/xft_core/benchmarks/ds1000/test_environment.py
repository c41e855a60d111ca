"""The pinned environment: the messages when it is missing or altered (fast), and grading in it (slow)."""

import json
from pathlib import Path

import pytest

from tests.xft_core.benchmarks.ds1000.problems import row
from xft_core.benchmarks.ds1000 import environment
from xft_core.benchmarks.ds1000.benchmark import DS1000
from xft_core.benchmarks.ds1000.environment import LIBRARIES, Environment, create, find_environment, requirements
from xft_core.benchmarks.ds1000.grading import DS1000Grader
from xft_core.errors import SandboxError
from xft_core.recipe.sections import EvaluateConfig
from xft_core.stages.configs import EvaluateStage
from xft_core.stages.evaluate import grade_all
from xft_core.stages.run import stage_key

ROOT = Path(__file__).parents[4]
FILE = ROOT.parent / "shared" / "data" / "benchmarks" / "ds1000" / "ds1000.jsonl.gz"
needs_data = pytest.mark.skipif(not FILE.is_file(), reason=f"DS-1000 is not in {FILE}")

# Their reference answers load a data set from the network, which the sandbox does not have.
NEED_NETWORK = {519, 539, 565, 566, 567, 577, 598, 624, 629, 650, 654, 655, 656, 661, 819}

SMALL = ["Pandas", "Numpy", "Scipy", "Sklearn", "Matplotlib"]


def fake(place: Path, packages: dict[str, str]) -> Path:
    """Create an environment's files without an interpreter: those that are read before anything runs."""
    site = place / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    for name, version in packages.items():
        (site / f"{name}-{version}.dist-info").mkdir(parents=True)
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (place / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = 3.11.7\n{environment.WHOLE} = true\n")
    return place


def test_without_it_nothing_is_graded_unless_current_libraries_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XFT_DS1000_ENVIRONMENT", str(tmp_path / "none"))
    with pytest.raises(SandboxError, match="python -m xft_core ds1000-environment"):
        find_environment("pinned")
    (tmp_path / "own.jsonl").write_text(json.dumps(row(1)) + "\n")
    (tmp_path / "samples.jsonl").write_text("")
    stage = EvaluateStage(output=tmp_path / "out", benchmark=str(tmp_path / "own.jsonl"), samples=tmp_path / "samples.jsonl")
    with pytest.raises(SandboxError, match="ds1000-environment"):
        stage_key(stage)
    current = stage.model_copy(update={"evaluate": EvaluateConfig(ds1000_environment="current")})
    assert stage_key(current)


def test_what_was_half_made_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake(tmp_path / "half", {}) / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
    monkeypatch.setenv("XFT_DS1000_ENVIRONMENT", str(tmp_path / "half"))
    with pytest.raises(SandboxError, match="there is no environment"):
        find_environment("pinned")


def test_other_releases_than_the_pinned_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = requirements()
    monkeypatch.setattr(environment, "OWN_PLACES", ())
    place = fake(tmp_path / "env", {"numpy": pins["numpy"], "torch": f"{pins['torch']}+cpu", "extra": "1"})
    monkeypatch.setenv("XFT_DS1000_ENVIRONMENT", str(place))
    found = find_environment("pinned")
    assert found.packages == {"extra": "1", "numpy": pins["numpy"], "torch": f"{pins['torch']}+cpu"}
    assert found.key()["numpy"] == pins["numpy"] and found.key()["pandas"] is None
    (place / "lib/python3.11/site-packages/extra-1.dist-info/METADATA").write_text("Name: extra\nVersion: 2\n")
    assert find_environment("pinned").key() != found.key()
    fake(tmp_path / "other", {"numpy": "2.0.0"})
    monkeypatch.setenv("XFT_DS1000_ENVIRONMENT", str(tmp_path / "other"))
    with pytest.raises(SandboxError, match=rf"numpy 2\.0\.0 instead of {pins['numpy']}"):
        find_environment("pinned")


def test_a_place_that_the_sandbox_hides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SandboxError, match="/tmp"):
        create(Path("/tmp/ds1000-of-a-test"), [])


def test_it_is_not_made_over_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "OWN_PLACES", ())
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SandboxError, match="not a Python environment"):
        create(tmp_path, [])


def test_every_package_to_install_is_pinned() -> None:
    assert {package for library in LIBRARIES.values() for package in library.packages} <= set(requirements())


@pytest.fixture(scope="module")
def pinned() -> Environment:
    """Find this machine's environment. If there is none, create a small one (no torch, no TensorFlow) below the project."""
    try:
        return find_environment("pinned")
    except SandboxError:
        return create(ROOT / ".downloads" / "ds1000", SMALL)


def failures(grader: DS1000Grader, libraries: list[str], step: int = 1, answer: str | None = None) -> set[int]:
    """Return numbers of problems of ``libraries``, every ``step``-th, whose reference answer (or ``answer``) does not pass."""
    problems = [item for item in DS1000().load_problems(FILE) if item.library in libraries][::step]
    samples = {problem.task_id: [answer or problem.reference_code] for problem in problems}
    verdicts = {problem.task_id: grader.grade(problem, samples[problem.task_id])[0] for problem in problems}
    return {int(task_id.rpartition("/")[2]) for task_id, verdict in verdicts.items() if verdict.base != "pass"}


@pytest.mark.slow
@needs_data
def test_reference_answers_pass_and_no_answer_does_not(pinned: Environment) -> None:
    grader = DS1000Grader(EvaluateConfig(), pinned)
    try:
        assert failures(grader, SMALL, step=12) <= NEED_NETWORK
        wrong = failures(grader, ["Pandas", "Numpy", "Scipy", "Sklearn"], step=40, answer="result = None")
        assert len(wrong) == len([0 for item in DS1000().load_problems(FILE) if item.library in SMALL[:4]][::40])
    finally:
        grader.stop()


@pytest.mark.slow
@needs_data
def test_all_reference_answers(pinned: Environment, tmp_path: Path) -> None:
    if not {"torch", "tensorflow-cpu"} <= pinned.packages.keys():
        pytest.skip("the environment here is a small one, without torch and TensorFlow: make ds1000")
    grader = DS1000Grader(EvaluateConfig(), pinned)
    problems = DS1000().load_problems(FILE)
    verdicts = grade_all(
        [*problems], {item.task_id: [item.reference_code] for item in problems}, grader, 2, tmp_path / "verdicts.jsonl")
    assert {int(task_id.rpartition("/")[2]) for task_id, found in verdicts.items() if found[0].base != "pass"} == NEED_NETWORK
