"""The digest of watched data: the same for the same contents, different for different contents, wherever the data is."""

from pathlib import Path

import pytest

from tasks.watching import data_digest
from tests.tasks.object_store.proxy import BUCKET, Proxy, raw_client, s3, s3_server  # noqa: F401  (fixtures)
from xft_core.errors import DataError


def test_a_file_and_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    (directory / "more").mkdir(parents=True)
    one, other = directory / "rows.jsonl", directory / "more" / "rows.jsonl"
    one.write_text("1")
    other.write_text("2")
    seen = {data_digest(str(one)), data_digest(str(directory))}
    assert data_digest(str(directory)) in seen
    other.write_text("3")
    assert data_digest(str(one)) in seen and data_digest(str(directory)) not in seen
    other.rename(directory / "rows2.jsonl")
    assert data_digest(str(directory)) not in seen
    assert data_digest("demo:instruct.jsonl") != data_digest("demo:held_out.jsonl")


def test_what_is_in_s3(s3: Proxy) -> None:  # noqa: F811
    client = raw_client(s3.target)
    client.put_object(Bucket=BUCKET, Key="watched/rows.jsonl", Body=b"1")
    file, prefix = (data_digest(f"s3://{BUCKET}/watched{rest}") for rest in ("/rows.jsonl", ""))
    client.put_object(Bucket=BUCKET, Key="watched/rows.jsonl.bak", Body=b"1")
    assert data_digest(f"s3://{BUCKET}/watched/rows.jsonl") == file
    assert data_digest(f"s3://{BUCKET}/watched/") != prefix
    client.put_object(Bucket=BUCKET, Key="watched/rows.jsonl", Body=b"2")
    assert data_digest(f"s3://{BUCKET}/watched/rows.jsonl") != file
    with pytest.raises(DataError, match="nothing to watch"):
        data_digest(f"s3://{BUCKET}/nowhere")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is nothing to watch"):
        data_digest(str(tmp_path))
