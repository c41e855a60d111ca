"""A disk that fills while a stage runs, for every stage with large output: real small disks, real stages."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0, reason="no user namespaces here")]

ON_SMALL_DISKS = """
import subprocess, sys
from pathlib import Path

from xft_core.store.artifacts import verify
from xft_core.recipe.sections import DataConfig, GenerateConfig, MergeConfig, SftConfig, UpcycleConfig
from xft_core.errors import DiskFullError
from xft_core.stages.run import run_stage
from xft_core.stages.configs import GenerateStage, MergeStage, MixStage, PrepareStage, SftStage, UpcycleStage

root = Path(sys.argv[1])
disk, whole = root / "disk", root / "whole"
disk.mkdir()
sft = SftConfig(max_steps=3, epochs=20, batch_size=4, micro_batch_size=4, precision="fp32", packing=False, checkpoint_steps=1,
                log_steps=1, learning_rate=0.001)
made = {
    "prepare": PrepareStage(output=whole / "prepare", data=DataConfig(
        max_rows=60, max_length=64, held_out_rows=8, decontaminate=False)),
    "upcycle": UpcycleStage(output=whole / "upcycle", upcycle=UpcycleConfig(num_experts=3, num_experts_per_tok=2)),
    "sft": SftStage(output=whole / "sft", model=str(whole / "upcycle"), data=whole / "prepare", sft=sft),
    "mix": MixStage(output=whole / "mix", model=str(whole / "sft"), data=whole / "prepare", merge=MergeConfig(
        max_steps=26, epochs=50, batch_size=4, micro_batch_size=4, precision="fp32")),
    "merge": MergeStage(output=whole / "merge", model=str(whole / "sft"), coefficients=whole / "mix"),
    "generate": GenerateStage(output=whole / "generate", model="demo:model", max_problems=3,
        generate=GenerateConfig(max_new_tokens=8, precision="fp32", batch_size=1)),
}
for stage, config in made.items():
    expected = run_stage(config).manifest
    size = sum(entry.size for entry in expected.files)
    failed = 0
    for part in (0.1, 0.9):
        kilobytes = max(4, int(size * part / 1024) // 4 * 4)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], check=True)
        small = config.model_copy(update={"output": disk / "out"})
        try:
            run_stage(small)
            print(stage, part, "was done on", kilobytes, "KB of", size)
        except DiskFullError as error:
            assert "No space left while writing" in str(error) and "start the same command again" in str(error)
            assert not (disk / "out").exists(), "something half is visible"
            failed += 1
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run_stage(small).manifest.digest == expected.digest == verify(disk / "out").digest
        assert not list(disk.glob("*.partial")), "work in progress is left behind"
        subprocess.run(["umount", str(disk)], check=True)
    assert failed >= 1, (stage, failed, size)
    print(stage, "failed and was resumed", failed)
"""


def test_every_stage_is_a_message_and_goes_on_with_more_room(tmp_path: Path) -> None:
    command = ["unshare", "-Urm", sys.executable, "-c", ON_SMALL_DISKS, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("failed and was resumed") == 6
