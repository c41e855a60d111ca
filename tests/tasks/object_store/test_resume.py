"""Training stopped on one machine continues on another: real stage processes, a real S3 server over HTTP."""

import logging
import threading
import time
from pathlib import Path

import pytest

from tasks.execution.child_process import run_in_child
from tasks.object_store import checkpoints
from tasks.object_store.bucket import store
from tasks.stopping import RunStopped
from tests.tasks.object_store.proxy import Proxy
from xft_core.recipe.sections import DataConfig, SftConfig
from xft_core.stages.configs import PrepareStage, SftStage
from xft_core.stages.run import stage_key
from xft_core.store.artifacts import verify
from xft_core.store.manifest import read_manifest
from xft_core.store.workspace import Workspace

logger = logging.getLogger("tests.resume")
SFT = SftConfig(
    max_steps=12, epochs=20, batch_size=4, micro_batch_size=4, precision="fp32", packing=False, checkpoint_steps=1, log_steps=1,
    warmup_steps=0, learning_rate=0.001)


@pytest.mark.slow
def test_sft_goes_on_on_another_machine_to_the_same_bits(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoints, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(checkpoints, "BETWEEN_UPLOADS_SECONDS", 0.02)
    data = tmp_path / "data"
    run_in_child(
        PrepareStage(output=data, data=DataConfig(max_rows=60, max_length=64, held_out_rows=8, decontaminate=False)),
        logger.info, threading.Event(), 1)

    def stage(machine: str) -> tuple[SftStage, str]:
        draft = SftStage(output=tmp_path / machine, model="demo:model", data=data, sft=SFT)
        key = stage_key(draft)
        output = tmp_path / machine / "artifacts" / "sft" / key[:32]
        output.parent.mkdir(parents=True)
        return draft.model_copy(update={"output": output}), key

    first, key = stage("first")
    stop = threading.Event()

    def stop_once_a_checkpoint_is_there() -> None:
        bucket = store()
        assert bucket is not None
        while b"checkpoint-" not in (bucket.get(f"checkpoints/sft/{key[:32]}/manifest.json") or b""):
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=stop_once_a_checkpoint_is_there, daemon=True).start()
    with pytest.raises(RunStopped), checkpoints.Keeper(first.output, key, logger):
        run_in_child(first, logger.info, stop, 1)

    second, key = stage("second")
    lines: list[str] = []
    assert checkpoints.restore(second.output, key, threading.Event(), logger)
    assert list(Workspace(second.output).checkpoints.glob("checkpoint-*/whole"))
    run_in_child(second, lines.append, threading.Event(), 1)
    assert any("continuing from step" in line for line in lines)

    undisturbed, _ = stage("third")
    run_in_child(undisturbed, logger.info, threading.Event(), 1)
    assert verify(second.output).digest == read_manifest(undisturbed.output).digest
