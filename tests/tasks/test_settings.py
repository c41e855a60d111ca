import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

from tasks.settings import settings, sqlite_url
from xft_core.errors import XftError


def test_defaults_need_nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XFT_HOME", "MLFLOW_TRACKING_URI", "XFT_COMPUTE_SLOTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    found = settings()
    assert found.home == tmp_path / ".xft"
    assert found.tracking_uri == f"sqlite:///{tmp_path}/.xft/mlflow.db"
    assert found.compute_slots in (1, 2)
    assert found.tracking_is_local


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_slots_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XFT_COMPUTE_SLOTS", value)
    with pytest.raises(XftError, match=f"XFT_COMPUTE_SLOTS is '{value}'"):
        settings()


def test_cores_are_shared_among_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("XFT_COMPUTE_SLOTS", "3")
    assert settings().threads_per_slot == 2


@pytest.mark.parametrize(("given", "tracking", "expected"), [
    ("", "", None),
    ("http://127.0.0.1:5000/", "", "http://127.0.0.1:5000"),
    ("", "https://user:secret@mlflow.example/base/", "https://mlflow.example/base"),
    ("http://seen.example", "http://internal:5000", "http://seen.example")])
def test_where_mlflow_is_seen(monkeypatch: pytest.MonkeyPatch, given: str, tracking: str, expected: str | None) -> None:
    monkeypatch.setenv("XFT_MLFLOW_UI_URL", given)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    assert settings().mlflow_ui == expected


def test_an_address_of_pages_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_MLFLOW_UI_URL", "localhost:5000")
    with pytest.raises(XftError, match="XFT_MLFLOW_UI_URL is 'localhost:5000'"):
        settings()


WRONG = {"XFT_HOME": "/etc/passwd", "XFT_COMPUTE_SLOTS": "abc", "XFT_STORE": "nowhere", "XFT_RENDEZVOUS": "host:99999",
         "XFT_DS1000_ENVIRONMENT": "~no-such-user/x", "XFT_BENCHMARKS": "/etc/passwd", "XFT_S3_ENDPOINT_URL": "ftp://x",
         "MLFLOW_TRACKING_URI": "ftp://x", "PREFECT_API_URL": "nonsense", "XFT_ONE_ADDRESS": "maybe"}


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WRONG.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(XftError) as caught:
        settings()
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "XFT_HOME", "XFT_COMPUTE_SLOTS", "XFT_STORE", "XFT_S3_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "PREFECT_API_URL",
        "XFT_ONE_ADDRESS", "XFT_RENDEZVOUS", "XFT_BENCHMARKS", "XFT_DS1000_ENVIRONMENT"]


@pytest.mark.parametrize("value", ["host", "host:", "host:0", "host:65536", "host:x", ":123", "a b:1"])
def test_a_wrong_rendezvous_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XFT_RENDEZVOUS", value)
    with pytest.raises(XftError, match="XFT_RENDEZVOUS is"):
        settings()


def test_a_socks_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.settings.find_spec", lambda _: None)
    monkeypatch.setenv("all_proxy", "socks5h://user:secret@127.0.0.1:1080")
    with pytest.raises(XftError, match="all_proxy names a SOCKS proxy") as caught:
        settings()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "what now?", "100%41", "a#b", "数据", "x&y=z;w", "q?uri=true"])
def test_a_database_is_made_below_any_home(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    engine = sqlalchemy.create_engine(sqlite_url(directory / "mlflow.db"))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE made (x)"))
    engine.dispose()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [directory / "mlflow.db"]


@pytest.mark.parametrize("wrong", [
    name if name == "XFT_HOME" else pytest.param(name, marks=pytest.mark.slow) for name in WRONG])
def test_a_wrong_setting_raises_nothing_at_import(tmp_path: Path, wrong: str) -> None:
    assert _after_import(tmp_path, "import flows.pipeline, flows.compare, flows.evaluate; print('fine')",
                         PREFECT_HOME=str(tmp_path / "p"), **{wrong: WRONG[wrong]}) == "fine"


@pytest.mark.parametrize(("given", "expected"), [
    ({}, "127.0.0.1,localhost,::1"),
    ({"NO_PROXY": "corp.example,.inside"}, "corp.example,.inside,127.0.0.1,localhost,::1"),
    ({"no_proxy": "localhost", "NO_PROXY": "other"}, "localhost,127.0.0.1,::1"),
    ({"no_proxy": "*"}, "*"), ({"no_proxy": "", "NO_PROXY": "*"}, "*")])
def test_loopback_goes_through_no_proxy(tmp_path: Path, given: dict[str, str], expected: str) -> None:
    code = "import tasks, os; print(os.environ['no_proxy'], os.environ['NO_PROXY'])"
    cleared = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""} | given
    assert _after_import(tmp_path, code, **cleared).split(" ") == [expected, expected]


def _after_import(tmp_path: Path, code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "XFT", "MLFLOW"))}
    clean |= environment | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_prefect_lives_under_the_home(tmp_path: Path) -> None:
    code = "import flows.pipeline; from prefect.settings import PREFECT_HOME; print(PREFECT_HOME.value())"
    assert _after_import(tmp_path, code) == str(tmp_path / ".xft" / "prefect")


def test_a_prefect_server_in_use_is_left_alone(tmp_path: Path) -> None:
    code = "import tasks, os; print(os.environ.get('PREFECT_HOME'))"
    assert _after_import(tmp_path, code, PREFECT_API_URL="http://localhost:1/api") == "None"


def test_importing_the_pipeline_loads_nothing_heavy(tmp_path: Path) -> None:
    code = ("import sys, flows.pipeline, flows.cli, flows.local.ui; "
            "print([m for m in ('torch', 'transformers', 'mlflow', 'datasets', 'boto3') if m in sys.modules])")
    assert _after_import(tmp_path, code) == "[]"
