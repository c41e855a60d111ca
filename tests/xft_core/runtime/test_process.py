"""How our processes begin and end: alone, interruptible, with docstrings, and quietly if nobody reads their output."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from xft_core.files.locate import find_model
from xft_core.recipe.sections import DataConfig, SftConfig
from xft_core.runtime.process import LAUNCHER_PREFIXES, LAUNCHER_VARIABLES, drop_launcher_variables
from xft_core.stages.configs import PrepareStage
from xft_core.stages.run import run_stage

COMMAND = [sys.executable, "-m", "xft_core"]
# Variables of launchers that would change the training: a waiting rank, 16 bits, accumulated gradients.
LAUNCHED = {
    "torchrun": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29655",
                 "TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0", "ROLE_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
    "mpirun, MPICH, SLURM": {
        "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMI_SIZE": "2",
        "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "SLURM_NTASKS": "2"},
    "accelerate": {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
}


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], str]:
    """Return one step of SFT, and the digest of its output without a launcher."""
    root = tmp_path_factory.mktemp("training")
    run_stage(PrepareStage(output=root / "data", data=DataConfig(
        path="demo:instruct.jsonl", max_rows=80, max_length=128, held_out_rows=8, decontaminate=False)))
    fields: dict[str, object] = {
        "model": str(find_model("demo:model")), "data": str(root / "data"), "output": str(root / "out"),
        "sft": json.loads(SftConfig(
            max_steps=1, batch_size=2, micro_batch_size=2, precision="fp32", optimizer="adamw").model_dump_json())}
    return fields, _trained(fields, root / "plain", {})


def _trained(fields: dict[str, object], place: Path, environment: dict[str, str]) -> str:
    place.mkdir()
    (place / "stage.yaml").write_text(yaml.safe_dump(fields | {"output": str(place / "out")}), encoding="utf-8")
    done = subprocess.run(
        [*COMMAND, "sft", str(place / "stage.yaml")], env=os.environ | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    files = json.loads((place / "out" / "manifest.json").read_text())["files"]
    return str(next(file["sha256"] for file in files if file["path"] == "model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHED)
def test_a_launchers_variables_change_no_training(
    training: tuple[dict[str, object], str], tmp_path: Path, launcher: str,
) -> None:
    fields, expected = training
    assert _trained(fields, tmp_path / "run", LAUNCHED[launcher]) == expected


def test_what_is_dropped_and_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*LAUNCHER_VARIABLES, *(f"{prefix}X" for prefix in LAUNCHER_PREFIXES)]:
        monkeypatch.setenv(name, "1")
    stays = {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "1", "NCCL_DEBUG": "INFO", "LOCAL_MODELS": "/models"}
    for name, value in stays.items():
        monkeypatch.setenv(name, value)
    drop_launcher_variables()
    assert not [name for name in os.environ if name in LAUNCHER_VARIABLES or name.startswith(LAUNCHER_PREFIXES)]
    assert {name: os.environ[name] for name in stays} == stays


@pytest.mark.parametrize("how", [["-OO"], *(pytest.param(how, marks=pytest.mark.slow) for how in (["-O"], ["-POO"]))])
def test_it_works_without_asserts_and_docstrings(training: tuple[dict[str, object], str], how: list[str]) -> None:
    model = str(training[0]["model"])
    done = subprocess.run([sys.executable, *how, "-m", "xft_core", "inspect", model], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == subprocess.run([*COMMAND, "inspect", model], capture_output=True, text=True).stdout


@pytest.mark.slow
def test_a_stage_works_with_pythonoptimize(training: tuple[dict[str, object], str], tmp_path: Path) -> None:
    fields, expected = training
    assert _trained(fields, tmp_path / "run", {"PYTHONOPTIMIZE": "2"}) == expected
    listed = subprocess.run([*COMMAND, "--help"], env=os.environ | {"PYTHONOPTIMIZE": "2"}, capture_output=True, text=True)
    assert "Run supervised fine-tuning of a dense" in listed.stdout


@pytest.mark.parametrize("arguments", [["inspect", "MODEL"], ["--help"], ["sft", "--help"], ["inspect", "/no/such/model"]])
def test_a_closed_pipe_is_no_error(training: tuple[dict[str, object], str], arguments: list[str]) -> None:
    words = [str(training[0]["model"]) if word == "MODEL" else word for word in arguments]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as nobody:
        done = subprocess.run([*COMMAND, *words], stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert not [word for word in ("Traceback", "Broken pipe", "Exception ignored") if word in done.stderr], done.stderr
    assert done.returncode in (0, 2, 141)
    assert done.returncode == 2 or not done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(training: tuple[dict[str, object], str], closed: str) -> None:
    words = [*COMMAND, "inspect", str(training[0]["model"])]
    done = subprocess.run(["sh", "-c", f"{shlex.join(words)} {closed}"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


def test_a_full_disk_where_the_output_goes_is_told(training: tuple[dict[str, object], str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "inspect", str(training[0]["model"])], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr and "None" not in done.stderr


def test_sigint_interrupts_what_a_script_started_in_the_background(tmp_path: Path) -> None:
    waiting = [*COMMAND, "join", str(tmp_path), "--node", "1"]  # it waits for a file that never comes
    process = subprocess.Popen(["sh", "-c", f"{shlex.join(waiting)} & echo $!; wait $!; echo $?"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    pid = int(process.stdout.readline())
    assert "Waiting for" in process.stderr.readline()
    os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        os.kill(pid, signal.SIGKILL)
    assert process.stdout.read().strip() == "130"


# Work that waits at its end, as for an unavailable server. {wait} is the place.
WAITING = """
import sys, threading, time
from xft_core.runtime.process import interrupted_in_time

def wait():
    print("waits", flush=True)
    time.sleep(60)

if {wait!r} == "thread":
    with interrupted_in_time(1, "said"):
        threading.Thread(target=time.sleep, args=(60,)).start()
        wait()
elif {wait!r} == "cleanup":
    with interrupted_in_time(1, "said"):
        try:
            wait()
        finally:
            time.sleep(60)
else:
    with interrupted_in_time(60, "said"):
        pass
    wait()
"""


@pytest.mark.parametrize(("wait", "said"), [("thread", 0), ("cleanup", 1), ("exit", 0)])
def test_an_interrupted_command_ends_whatever_waits(wait: str, said: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(wait=wait)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines().count("said") == said


IGNORING = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-c", '''
import signal
from xft_core.runtime.process import command
@command
def main(arguments):
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)
    return 0
raise SystemExit(main())
'''])
"""


def test_a_command_restores_the_signals_that_it_lives_by() -> None:
    done = subprocess.run([sys.executable, "-c", IGNORING], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.split() == ["True", "True"], done.stderr
