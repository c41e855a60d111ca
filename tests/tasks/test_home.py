"""XFT_HOME: private, and usable again after it was moved or copied. With a real MLflow database."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.home import check_place, old_places, open_home, relocate
from tasks.settings import Settings, settings, sqlite_url
from xft_core.errors import XftError

# A run with a file, a registered model made from it, and a logged model, like those of our runs.
WORK = """
import sys, json
from pathlib import Path
from tasks.settings import settings
from tasks.tracking import runs
from tasks.tracking.client import client
client, name = client(), sys.argv[1]
experiment = runs.experiment_id("xft", "pipeline")
run = client.create_run(experiment).info
(settings().home / "artifacts" / "merge" / "key").mkdir(parents=True, exist_ok=True)
client.set_tag(run.run_id, "xft.path", str(settings().home / "artifacts" / "merge" / "key"))
client.set_tag(run.run_id, "note", f"made in {settings().home} by hand")
client.log_text(run.run_id, name, "model/weights.txt")
if not client.search_registered_models():
    client.create_registered_model("tiny")
client.create_model_version("tiny", source=run.artifact_uri + "/model", run_id=run.run_id)
client.create_logged_model(experiment, name="logged")
"""
READ = """
import json
from pathlib import Path
from tasks.tracking.client import client
client = client()
versions = client.search_model_versions()
print(json.dumps([Path(client.download_artifacts(item.run_id, "model/weights.txt")).read_text() for item in versions]))
print(json.dumps(sorted(client.get_model_version_download_uri("tiny", item.version) for item in versions)))
"""


def within(home: Path, code: str, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "XFT", "MLFLOW"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=home.parent, capture_output=True, text=True,
        env=environment | {"XFT_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == 0, done.stderr
    return done.stdout


def settings_of(home: Path) -> Settings:
    return replace(settings(), home=home, tracking_uri=sqlite_url(home / "mlflow.db"))


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a home with one run in it. Tests copy it and must not change it."""
    home = tmp_path_factory.mktemp("used") / "first one"
    within(home, WORK, "first")
    return home


@pytest.fixture
def original(used: Path, tmp_path: Path) -> Path:
    """Create the test's own home, relocated to its place."""
    home = tmp_path / "original"
    shutil.copytree(used, home)
    relocate(settings_of(home))
    return home


def contents(home: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copy", "what now? 50%41#数 据", "original/inside"])
def test_a_copied_home_is_refused_until_it_is_put_right(original: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / name
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("inside"))
    check_place(settings_of(original))
    with pytest.raises(XftError, match=r"was copied from .*/original'.*`xft relocate`"):
        check_place(settings_of(copy))
    before = contents(original)
    assert relocate(settings_of(copy)) == 6  # experiment, run, logged model, version (twice), tag
    check_place(settings_of(copy))
    assert relocate(settings_of(copy)) == 0
    within(copy, WORK, "second")
    after = {path: content for path, content in contents(original).items() if not path.startswith(f"{copy}/")}
    assert after == {path: content for path, content in before.items() if not path.startswith(f"{copy}/")}
    texts, addresses = map(json.loads, within(copy, READ).splitlines())
    assert sorted(texts) == ["first", "second"]
    assert all(address.startswith(f"{copy.as_uri()}/mlflow-artifacts/") for address in addresses)


@pytest.mark.slow
def test_a_moved_home_is_refused_until_it_is_put_right(used: Path, original: Path, tmp_path: Path) -> None:
    moved = original.rename(tmp_path / "moved")
    with pytest.raises(XftError, match=r"was moved from .*/original'"):
        check_place(settings_of(moved))
    relocate(settings_of(moved))
    assert json.loads(within(moved, READ).splitlines()[0]) == ["first"]
    assert not original.exists()
    with sqlite3.connect(moved / "mlflow.db") as database:
        tags = dict(database.execute("SELECT key, value FROM tags"))
    assert tags["xft.path"] == str(moved / "artifacts" / "merge" / "key")
    assert tags["note"] == f"made in {used} by hand"  # free text is left alone


def test_the_same_home_by_a_link_is_in_its_place(original: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(original)
    assert old_places(settings_of(tmp_path / "link")) == []


@pytest.mark.slow
def test_another_home_that_uses_this_ones_database_is_left_alone(original: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    environment = f"import os; os.environ['MLFLOW_TRACKING_URI'] = {settings_of(original).tracking_uri!r}\n"
    experiment = WORK.replace('experiment_id("xft", ', 'experiment_id("other", ')
    within(other, environment + experiment, "elsewhere")
    assert (other / "mlflow-artifacts").is_dir()
    assert old_places(settings_of(original)) == []


def test_experiments_that_others_made_are_left_alone(original: Path, tmp_path: Path) -> None:
    with sqlite3.connect(original / "mlflow.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'Default'", (f"file://{tmp_path}/mine",))
    assert old_places(settings_of(original)) == []


def test_a_database_in_use_is_not_half_changed(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, **options | {"timeout": 0.1}))
    with connect(copy / "mlflow.db") as busy:
        busy.execute("BEGIN IMMEDIATE")
        with pytest.raises(XftError, match=r"mlflow.db' cannot be changed: database is locked"):
            relocate(settings_of(copy))
        busy.rollback()
    assert relocate(settings_of(copy)) == 6


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XFT_HOME", str(tmp_path / "a" / "home"))
    return tmp_path / "a" / "home"


def opened() -> list[str]:
    said: list[str] = []
    open_home(said.append)
    return said


def test_a_new_home_is_for_this_user_only(home: Path) -> None:
    assert opened() == []
    assert mode(home) == 0o700


@pytest.mark.parametrize(("before", "after"), [(0o755, 0o700), (0o777, 0o700), (0o710, 0o700), (0o2775, 0o2770)])
def test_an_open_home_is_closed_and_that_is_said_once(home: Path, before: int, after: int) -> None:
    (home / "artifacts").mkdir(parents=True)
    home.chmod(before)
    said = opened()
    assert len(said) == 1 and str(home) in said[0]
    assert mode(home) == after
    assert opened() == []


def test_a_home_that_a_group_shares_stays_so(home: Path) -> None:
    home.mkdir(parents=True)
    home.chmod(0o2770)
    assert opened() == []
    assert mode(home) == 0o2770


@pytest.mark.parametrize("mark", ["others' files", "sticky"])
def test_a_directory_that_is_not_ours_alone_is_left_as_it_is(home: Path, mark: str) -> None:
    (home / "artifacts").mkdir(parents=True)
    home.chmod(0o755 if mark == "others' files" else 0o1777)
    if mark == "others' files":
        (home / "thesis.tex").write_text("x")
    before = mode(home)
    assert "does not change its mode" in opened()[0]
    assert mode(home) == before


@pytest.mark.parametrize("value", ["/proc/none", "/dev/null/x"])
def test_a_home_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XFT_HOME", value)
    with pytest.raises(XftError, match=f"XFT_HOME is '{value}'"):
        opened()


def test_what_a_killed_verify_left_in_the_home_is_swept(home: Path) -> None:
    left = home / "xft-verify-0123456789ab"
    left.mkdir(parents=True)
    arriving = home / "artifacts" / "merge" / "abc.xft-transfer-0123456789ab"
    arriving.mkdir(parents=True)
    opened()
    assert not left.exists() and not arriving.exists()
