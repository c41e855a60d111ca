"""The object store against a real S3 server over HTTP, with the faults that networks and object stores have."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks import storage
from tasks.launch import RunStopped
from tasks.settings import settings
from tasks.storage import Bucket, StoreRefused, StoreUnavailable, safe_name, store
from tests.tasks.object_store import BUCKET, SECRET_KEY, Proxy, fail_first, raw_client
from xft_core.errors import XftError

MB = 1024 * 1024
NEVER = threading.Event()


@pytest.fixture
def bucket(s3: Proxy) -> Bucket:
    found = store()
    assert found is not None
    return found


@pytest.fixture
def large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12 MB, which go in three parts (5 MB is the least that S3 allows)."""
    monkeypatch.setattr(storage, "PART_BYTES", 5 * MB)
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(range(256)) * (12 * MB // 256))
    return path


def open_uploads(s3: Proxy) -> list[Any]:
    return raw_client(s3.target).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])


def test_no_store_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XFT_STORE", raising=False)
    assert store() is None


def test_objects_stay_below_the_prefix(bucket: Bucket, s3: Proxy) -> None:
    assert bucket.get("runs/a.json") is None
    assert bucket.put("runs/a.json", b"1")
    assert bucket.get("runs/a.json") == b"1"
    assert not bucket.put("runs/a.json", b"2", only_new=True)
    assert bucket.get("runs/a.json") == b"1"
    assert [item.name for item in bucket.objects("runs/")] == ["runs/a.json"]
    assert [item["Key"] for item in raw_client(s3.target).list_objects_v2(Bucket=BUCKET)["Contents"]] == [
        "some/prefix/runs/a.json"]
    bucket.delete(["runs/a.json", "runs/never-there.json"])
    assert bucket.get("runs/a.json") is None


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//b", "", ".", "a\\b", "a\nb", "a\0b", "x" * 4000])
def test_a_name_outside_is_refused(name: str) -> None:
    with pytest.raises(StoreRefused):
        safe_name(name)


def test_a_name_outside_is_refused_before_anything_is_sent(bucket: Bucket, s3: Proxy) -> None:
    for ask in (bucket.get, lambda name: bucket.put(name, b""), lambda name: bucket.delete([name]), bucket.delete_below):
        with pytest.raises(StoreRefused):
            ask("../other/prefix")
    assert s3.requests == []


def test_a_large_file_goes_in_parts_and_comes_back_the_same(
    bucket: Bucket, s3: Proxy, large_file: Path, tmp_path: Path,
) -> None:
    bucket.upload({"a/large.bin": large_file}, NEVER)
    assert s3.count("PUT", "partNumber") == 3
    bucket.download({"a/large.bin": tmp_path / "back", "a/absent": tmp_path / "absent"}, NEVER)
    assert (tmp_path / "back").read_bytes() == large_file.read_bytes()
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("fault", ["cut request", "500 InternalError", "503 SlowDown", "cut response"])
def test_faults_in_mid_multipart_are_tried_again(
    bucket: Bucket, s3: Proxy, large_file: Path, tmp_path: Path, fault: str,
) -> None:
    s3.fault = fail_first(2, fault, lambda request: "partNumber" in request.path)
    bucket.upload({"large.bin": large_file}, NEVER)
    s3.fault = fail_first(2, fault, lambda request: request.method == "GET")
    bucket.download({"large.bin": tmp_path / "back"}, NEVER)
    assert (tmp_path / "back").read_bytes() == large_file.read_bytes()
    assert open_uploads(s3) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut request", "503 SlowDown"])
def test_a_store_that_stays_away_may_pass_and_leaves_no_parts(
    bucket: Bucket, s3: Proxy, large_file: Path, fault: str,
) -> None:
    s3.fault = fail_first(1000, fault, lambda request: "partNumber=2" in request.path)
    with pytest.raises(StoreUnavailable, match="the same command goes on") as caught:
        bucket.upload({"large.bin": large_file}, NEVER)
    assert caught.value.may_pass
    assert s3.count("PUT", "partNumber=2") == storage.ATTEMPTS
    assert open_uploads(s3) == []
    assert list(bucket.objects("")) == []


@pytest.mark.parametrize("fault", ["400 ExpiredToken", "403 InvalidAccessKeyId", "403 SignatureDoesNotMatch",
                                   "403 AccessDenied", "400 InvalidToken", "404 NoSuchBucket"])
def test_a_refusal_is_said_once_and_not_tried_again(bucket: Bucket, s3: Proxy, large_file: Path, fault: str) -> None:
    s3.fault = lambda request: fault
    with pytest.raises(StoreRefused) as caught:
        bucket.check()
    assert len(s3.requests) == 1
    assert not caught.value.may_pass
    assert fault.split()[1] in str(caught.value) or "no bucket 'models'" in str(caught.value)
    with pytest.raises(StoreRefused):
        bucket.upload({"large.bin": large_file}, NEVER)
    assert len(s3.requests) == 2
    assert SECRET_KEY not in str(caught.value)


def test_no_credentials_and_no_bucket_are_named(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_STORE", "s3://not-there")
    with pytest.raises(StoreRefused, match="There is no bucket 'not-there'"):
        _in_force().check()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreRefused, match="needs credentials"):
        _in_force().check()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreRefused, match="nobody"):
        _in_force().check()


def test_nobody_at_home_is_unavailable(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    monkeypatch.setenv("XFT_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        _in_force().check()


def test_a_stopped_run_ends_a_transfer_and_leaves_no_parts(bucket: Bucket, s3: Proxy, large_file: Path) -> None:
    stop = threading.Event()

    def slow(request: Any) -> None:
        if "partNumber" in request.path:
            stop.set()
            time.sleep(0.3)

    s3.fault = slow
    with pytest.raises(RunStopped):
        bucket.upload({"large.bin": large_file}, stop)
    assert open_uploads(s3) == []


def test_uploads_of_killed_processes_are_found_and_aborted(bucket: Bucket, s3: Proxy) -> None:
    raw_client(s3.target).create_multipart_upload(Bucket=BUCKET, Key="some/prefix/artifacts/sft/abc/x")
    assert bucket.abandoned_uploads(before=1e9) == []  # moto says that every upload began in 2010
    (name, upload_id), = bucket.abandoned_uploads(before=time.time() + 60)
    assert name == "artifacts/sft/abc/x"
    bucket.abort_upload(name, upload_id)
    assert open_uploads(s3) == []


@pytest.mark.parametrize("address", [
    "bucket/prefix", "s3://", "s3://UPPER", "s3://bucket/../other", "s3://bucket//x", "https://bucket", "s3://bucket/a b",
    "s3://key:secret@bucket/x", "s3://bucket/x?y"])
def test_a_wrong_address_is_named_but_no_password_repeated(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("XFT_STORE", address)
    with pytest.raises(XftError, match="XFT_STORE") as caught:
        settings()
    assert "secret@" not in str(caught.value)


def test_an_endpoint_with_a_password_is_refused(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_S3_ENDPOINT_URL", "http://me:secret@host")
    with pytest.raises(XftError, match="without user name or password") as caught:
        store()
    assert "secret" not in str(caught.value)


def test_the_standard_variable_names_the_endpoint_too(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.address)
    monkeypatch.delenv("XFT_S3_ENDPOINT_URL")
    _in_force().check()
    assert s3.requests[0].path.startswith(f"/{BUCKET}?")


def test_only_storage_imports_boto3() -> None:
    root = Path(__file__).parents[2]
    naming = [path.name for folder in ("tasks", "flows", "xft_core") for path in (root / folder).rglob("*.py")
              if any(f"import {name}" in path.read_text() or f"from {name}" in path.read_text()
                     for name in ("boto3", "botocore", "s3transfer"))]
    assert naming == ["storage.py"]


def _in_force() -> Bucket:
    found = store()
    assert found is not None
    return found
