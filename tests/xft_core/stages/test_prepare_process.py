"""A process that prepares data: its imports, what it leaves behind when ended, and its memory."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import psutil
import pytest

from tests.factories import FAMILY_CONFIGS, dense_model
from xft_core.data import portions, tokenising
from xft_core.models.tokenizer import load_tokenizer
from xft_core.recipe.sections import DataConfig
from xft_core.runtime.exit_codes import ExitCode
from xft_core.stages.configs import PrepareStage
from xft_core.stages.run import run_stage
from xft_core.store.manifest import read_manifest
from xft_core.store.workspace import Workspace

COMMAND = [sys.executable, "-P", "-m", "xft_core", "prepare"]
TOKENIZER_CLASSES = ("LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizerFast")
SAMPLE = "def f(x): return x<s> 12\n  é"
TOKENS_WITHOUT_TORCH = f"""
import json, sys
from pathlib import Path
from xft_core.models.tokenizer import load_tokenizer
from xft_core.runtime.process import leave_out_torch
leave_out_torch()
loaded = [load_tokenizer(Path(directory)) for directory in sys.argv[1:]]
assert not sys.modules["torch"]
print(json.dumps([[type(it).__name__, it({SAMPLE!r}).input_ids, it.backend_tokenizer.to_str()] for it in loaded]))
"""


def write(path: Path, rows: int) -> Path:
    path.write_text("".join(
        json.dumps({"instruction": f"Add {number}", "response": f"x + {number}"}) + "\n" for number in range(rows)))
    return path


def test_importing_the_stage_imports_neither_torch_nor_transformers() -> None:
    program = "import sys, xft_core.stages.prepare; sys.exit(len({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_tokenizers_are_the_same_without_torch(tmp_path: Path) -> None:
    for family in FAMILY_CONFIGS:
        dense_model(tmp_path / family, family)
    for name in TOKENIZER_CLASSES:
        path = dense_model(tmp_path / name) / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
    directories = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", TOKENS_WITHOUT_TORCH, *map(str, directories)], stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout) == [
        [type(it).__name__, it(SAMPLE).input_ids, it.backend_tokenizer.to_str()] for it in map(load_tokenizer, directories)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [
    (signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)])
def test_what_is_ended_leaves_no_half_of_an_artifact_and_is_made_again(
        number: signal.Signals, status: int, tmp_path: Path) -> None:
    data, output = write(tmp_path / "d.jsonl", 60_000), tmp_path / "out"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"data": {"path": str(data), "max_rows": 100}, "output": str(output)}))
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    tokens = Workspace(output).checkpoints / "prepare" / "data" / "lines"
    with subprocess.Popen([*COMMAND, str(config)], stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not (tokens.exists() and tokens.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        children = psutil.Process(process.pid).children()
        assert len(children) == 3
        process.send_signal(number)
        assert process.wait(20) == status
        assert not psutil.wait_procs(children, timeout=5)[1]
        assert process.stderr
        said = process.stderr.read()
    assert "Traceback" not in said and (number != signal.SIGINT or "error: interrupted. Start the same command again" in said)
    assert not output.exists()
    subprocess.run([*COMMAND, str(config)], check=True, capture_output=True)
    other = run_stage(PrepareStage(output=tmp_path / "other", data=DataConfig(path=str(data), max_rows=100)))
    assert read_manifest(output).digest == other.manifest.digest and not Workspace(output).root.exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])  # of two, the one that collects what the other has read
def test_memory_hardly_grows_with_the_rows(processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(processes))
    monkeypatch.setattr(portions, "PORTION", 2**14)  # otherwise a portion takes more memory than so few kept rows
    monkeypatch.setattr(tokenising, "BATCH", 64)
    peaks = []
    for rows in (100, 5_000, 20_000):  # the first one includes the imports
        config = PrepareStage(output=tmp_path / f"o{rows}", data=DataConfig(path=str(write(tmp_path / f"{rows}.jsonl", rows))))
        tracemalloc.start()
        run_stage(config)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 15_000 < 100, peaks  # bytes; a row's line alone has 80, its tokens 160
