"""``xft publish`` as a user runs it, to all three places at once, killed in the middle of an upload and run again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tasks.tracking.registered import resolve
from tests.tasks.environment import HOME
from tests.tasks.object_store.proxy import BUCKET, Proxy, Request, raw_client
from tests.tasks.publishing.hub import TOKEN, FakeHub
from tests.tasks.publishing.test_release import registered  # noqa: F401  (fixture)
from xft_core.files.digests import file_digest

REPOSITORY = Path(__file__).parents[3]


class Killer:
    """Kill ``xft publish`` and all its processes when ``now`` is called for the first time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.armed = True

    def now(self) -> bool:
        """Return whether this call killed it."""
        if not self.armed or self.process is None:
            return False
        self.armed = False
        os.killpg(self.process.pid, signal.SIGKILL)
        return True


@pytest.mark.slow
@pytest.mark.parametrize("s3_server", ["moto"], indirect=True)
def test_a_publication_that_is_killed_goes_on_where_it_was(
    registered: str, s3: Proxy, s3_server: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    monkeypatch.setenv("XFT_HOME", str(HOME))  # the version is registered in this home; the fixture s3 set another one
    hub, target, killer = FakeHub(), tmp_path / "given out", Killer()

    def fault(request: Request) -> str | None:
        return "cut request" if request.method == "PUT" and "model.safetensors" in request.path and killer.now() else None

    s3.fault = fault
    with hub.serving():
        environment = os.environ | {
            "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-m", "flows.cli", "publish", registered, "--hub", "me/it", "--s3", f"s3://{BUCKET}/out/1",
                   "--directory", str(target), "--licence", "apache-2.0", "--data-licence", "CC-BY-4.0"]

        def publish() -> tuple[int, str]:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True)
            killer.process = process
            said, _ = process.communicate(timeout=900)
            return process.returncode, said

        def names() -> list[str]:
            found = raw_client(s3_server).list_objects_v2(Bucket=BUCKET, Prefix="out/1/")
            return [item["Key"] for item in found.get("Contents", [])]

        assert publish()[0] == -signal.SIGKILL  # the upload to the Hub is complete, the upload to S3 is not
        assert hub.repositories["me/it"].head != "0" * 40 and "out/1/config.json" not in names()
        uploads = [request for request in hub.requests if request.startswith("PUT /lfs/")]
        (tmp_path / ".given out.partial").mkdir()  # left by a killed copy
        (tmp_path / ".given out.partial" / "model.safetensors").write_bytes(b"half")
        code, said = publish()
        assert code == 0, said
        assert [request for request in hub.requests if request.startswith("PUT /lfs/")] == uploads  # not sent again
    places = {"hub": f"me/it@{hub.repositories['me/it'].head}", "objectstore": f"s3://{BUCKET}/out/1", "directory": str(target)}
    tags = resolve(registered).tags
    for kind, place in places.items():
        assert place in said and tags[f"xft.published.{kind}"] == place
    AutoModelForCausalLM.from_pretrained(target)
    weights = hub.repositories["me/it"].commits[hub.repositories["me/it"].head]["model.safetensors"]
    assert weights == (target / "model.safetensors").read_bytes()
    fetched = tmp_path / "fetched"
    raw_client(s3_server).download_file(BUCKET, "out/1/model.safetensors", str(fetched))
    assert file_digest(fetched) == file_digest(target / "model.safetensors")
    assert not (tmp_path / ".given out.partial").exists() and "CC-BY-4.0" in (target / "README.md").read_text()
