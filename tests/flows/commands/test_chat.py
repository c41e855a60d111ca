"""``xft chat`` answers lines as a conversation, through the real command."""

import subprocess
import sys
from pathlib import Path

import torch

from xft_core.demo import DEMO_DIR
from xft_core.generation.chat import Chat
from xft_core.recipe.sections import GenerateConfig

QUESTION = "Write a Python function that doubles a number."


def chat(home: Path, *arguments: str, lines: str) -> subprocess.CompletedProcess[str]:
    """Run the command with ``lines`` as its input."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("xft")), "chat", *arguments], input=lines, capture_output=True, text=True,
        timeout=240, env={"XFT_HOME": str(home), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}, cwd=home)


def test_lines_are_answered_until_the_input_ends(tmp_path: Path) -> None:
    config = GenerateConfig(max_new_tokens=24, precision="fp32")
    pieces: list[str] = []
    with torch.random.fork_rng():
        Chat(DEMO_DIR / "model", config).ask(QUESTION, pieces.append)
    told = "".join(pieces)
    done = chat(tmp_path, "demo:model", "--set", "max_new_tokens=24", "--set", "generate.precision=fp32",
                lines=f"{QUESTION}\n\n/new\n{QUESTION}\n/quit\nnever asked\n")
    assert done.returncode == 0, done.stderr
    assert told.strip() and done.stdout.count(told) == 2  # the same answer after /new, none after /quit
    assert "Traceback" not in done.stderr


def test_a_setting_or_model_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for arguments, message in (
        (("demo:model", "--set", "max_new_token=3"), "max_new_tokens"), (("no/such/model",), "no/such/model"),
        (("demo:model", "--template", "chat"), "no chat template"),
    ):
        done = chat(tmp_path, *arguments, lines="hello\n")
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
