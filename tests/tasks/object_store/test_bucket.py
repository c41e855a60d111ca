"""The object store against a real S3 server over HTTP, with the faults of real networks and object stores."""

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.object_store import bucket as storage
from tasks.object_store.bucket import Bucket, StoreRefused, StoreUnavailable, safe_name, store
from tasks.settings import settings
from tasks.stopping import RunStopped
from tests.tasks.object_store.proxy import BUCKET, SECRET_KEY, Proxy, fail_first, flipped, raw_client
from tests.tasks.object_store.servers import OTHER_ACCESS_KEY, POOR_ACCESS_KEY
from xft_core.errors import XftError
from xft_core.files.digests import file_digest

MB = 1024 * 1024
NEVER = threading.Event()


@pytest.fixture
def bucket(s3: Proxy) -> Bucket:
    found = store()
    assert found is not None
    return found


@pytest.fixture
def large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a file of 12 MB, which is sent in three parts (S3 requires at least 5 MB per part)."""
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
    with pytest.raises(StoreUnavailable, match="the same command continues") as caught:
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
    assert bucket.abandoned_uploads(before=1e9) == []  # moto dates every upload to 2010
    (name, upload_id), = bucket.abandoned_uploads(before=time.time() + 60)
    assert name == "artifacts/sft/abc/x"
    bucket.abort_upload(name, upload_id)
    assert open_uploads(s3) == []


@pytest.mark.parametrize(("code", "meaning"), [
    ("403 SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"), ("403 InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
    ("403 AccessDenied", "no permission to do this there"), ("403 RequestTimeTooSkewed", "clocks"),
    ("400 ExpiredToken", "AWS_SESSION_TOKEN"), ("403 QuotaExceeded", "quota"), ("403 UserSuspended", "suspended"),
    ("400 AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"), ("501 NotImplemented", "does not support"),
    ("400 Whatever", "Whatever, without a message. Check the credentials")])
def test_a_code_without_a_message_is_explained(bucket: Bucket, s3: Proxy, code: str, meaning: str) -> None:
    s3.message = ""
    s3.fault = lambda request: code
    for ask in (bucket.check, lambda: bucket.put("a", b""), lambda: bucket.delete(["a"])):
        with pytest.raises(StoreRefused, match=meaning) as caught:
            ask()
        assert code.split()[1] in str(caught.value) and "None" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)  # moto checks no signature
@pytest.mark.parametrize(("settings_", "message"), [
    ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch: the secret key is not the one that belongs"),
    ({"AWS_ACCESS_KEY_ID": "WRONG"}, "InvalidAccessKeyId: it does not know the access key"),
    ({"XFT_STORE": "s3://not-there/x"}, "There is no bucket 'not-there'"),
    ({"XFT_STORE": "s3://of-another/x"}, "AccessDenied: the credentials are known but have no permission"),
])
def test_what_ceph_refuses_is_explained(
    s3: Proxy, monkeypatch: pytest.MonkeyPatch, settings_: dict[str, str], message: str,
) -> None:
    another = raw_client(s3.target, OTHER_ACCESS_KEY)
    another.create_bucket(Bucket="of-another")
    for name, value in settings_.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreRefused) as caught:
        _in_force().check()
    assert message in str(caught.value) and "None" not in str(caught.value)
    another.delete_bucket(Bucket="of-another")


@pytest.mark.slow
@pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)
def test_a_clock_that_is_wrong_is_explained(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from botocore import auth

    now = auth.get_current_datetime
    message = r"RequestTimeTooSkewed: the clocks .* differ by more than 15 minutes"
    with monkeypatch.context() as late, pytest.raises(StoreRefused, match=message):
        late.setattr(auth, "get_current_datetime", lambda *given, **named: now(*given, **named) - timedelta(hours=2))
        bucket.check()


@pytest.mark.slow
@pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)
def test_a_full_quota_is_explained(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = raw_client(s3.target, POOR_ACCESS_KEY)
    poor.create_bucket(Bucket="of-the-poor")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", POOR_ACCESS_KEY)
    monkeypatch.setenv("XFT_STORE", "s3://of-the-poor/x")
    with pytest.raises(StoreRefused, match=r"QuotaExceeded: the quota .* is used up"):
        _in_force().put("a", bytes(100))
    poor.delete_bucket(Bucket="of-the-poor")


def test_what_the_server_says_of_an_unknown_code_is_repeated(bucket: Bucket, s3: Proxy) -> None:
    s3.fault = lambda request: "400 Whatever"
    with pytest.raises(StoreRefused, match=r"refuses: Whatever: on purpose\. Check the credentials"):
        bucket.check()


def test_a_content_altered_on_the_way_is_not_left_as_it_is(bucket: Bucket, s3: Proxy) -> None:
    s3.fault = fail_first(1, "flip request", lambda request: request.method == "PUT")
    with pytest.raises(StoreUnavailable):  # Ceph refuses it, moto accepts it
        bucket.put("runs/a.json", b"some content", only_new=True)
    assert bucket.get("runs/a.json") is None
    assert bucket.put("runs/a.json", b"some content", only_new=True)
    assert bucket.get("runs/a.json") == b"some content"


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("fault", [None, "other tags"])
def test_what_is_stored_is_compared_with_the_file(
    bucket: Bucket, s3: Proxy, large_file: Path, monkeypatch: pytest.MonkeyPatch, in_parts: bool, fault: str | None,
) -> None:
    if not in_parts:
        monkeypatch.setattr(storage, "PART_BYTES", 100 * MB)
    bucket.upload({"large.bin": large_file}, NEVER)
    s3.fault = lambda request: fault
    (item,), sha256 = bucket.objects(""), file_digest(large_file)
    s3.requests.clear()
    assert bucket.is_whole(item, large_file, sha256, NEVER)
    assert s3.count("GET") == (1 if fault else 0)  # read again only if the tag is not an MD5
    altered = large_file.with_name("altered")
    altered.write_bytes(flipped(large_file.read_bytes()))
    assert not bucket.is_whole(item, altered, file_digest(altered), NEVER)
    altered.write_bytes(b"")
    assert not bucket.is_whole(item, altered, file_digest(altered), NEVER)


def test_objects_go_over_https_too(s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_file: Path) -> None:
    """With HTTPS, boto3 sends requests in another form. Ceph 16 refused them all with MissingContentLength."""
    certificate = tmp_path / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", certificate, "-out", tmp_path / "ca.pem",
         "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    with certificate.open("ab") as stream:
        stream.write((tmp_path / "ca.pem").read_bytes())
    proxy = Proxy(s3.target, certificate=certificate)
    monkeypatch.setenv("XFT_S3_ENDPOINT_URL", proxy.address)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    found = _in_force()
    small = tmp_path / "small"
    small.write_bytes(b"small")
    assert found.put("runs/a.json", b"1", only_new=True) and not found.put("runs/a.json", b"2", only_new=True)
    found.upload({"large": large_file, "small": small}, NEVER)
    found.download({"large": tmp_path / "back"}, NEVER)
    assert (tmp_path / "back").read_bytes() == large_file.read_bytes()
    found.delete_below("")
    assert list(found.objects("")) == []
    assert proxy.count("PUT", "partNumber") == 3
    proxy.stop()


def test_objects_are_deleted_one_by_one_where_the_store_cannot_do_more(bucket: Bucket, s3: Proxy) -> None:
    for name in ("a", "b"):
        bucket.put(name, b"")
    s3.fault = lambda request: "501 NotImplemented" if request.method == "POST" else None
    bucket.delete(["a", "b", "never-there"])
    assert list(bucket.objects("")) == []


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


def test_only_the_bucket_imports_boto3() -> None:
    root = Path(__file__).parents[3]
    naming = [path.name for folder in ("tasks", "flows", "xft_core") for path in (root / folder).rglob("*.py")
              if any(f"import {name}" in path.read_text() or f"from {name}" in path.read_text()
                     for name in ("boto3", "botocore", "s3transfer"))]
    assert naming == ["bucket.py"]


def _in_force() -> Bucket:
    found = store()
    assert found is not None
    return found
