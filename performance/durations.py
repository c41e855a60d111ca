"""Check whether stages end within the time that ``xft plan`` gives: plan, run and compare, in a separate home.

    python -m performance.planning durations            # the demo and a model of SmolLM2's width, each twice: the first run is
                                                       # planned from probes, the second from the first run
    python -m performance.planning durations demo       # only the demo
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from flows.commands import plan as plan_command
from flows.options import parser
from tasks.execution.durations import remembered
from tasks.references import base_model
from xft_core.demo import DEMO_DIR
from xft_core.planning.inputs import problem_count
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import find_config, read_shape
from xft_core.planning.text import between
from xft_core.recipe.load import load_recipe

REPOSITORY = Path(__file__).parents[1]
DEMO = REPOSITORY / "deployments" / "recipes" / "demo.yaml"
RUNS = 2
# Of SmolLM2-135M's width, with 2 of its 30 layers and the demo's vocabulary.
SMOLLM2 = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2,
           "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 1024}


def main(names: list[str]) -> None:
    """Print the range and the real time of every stage of every run, then how many stages ended within their range."""
    within = total = 0
    print("| recipe | run | stage | planned | by | took s | within |\n|---|---:|---|---:|---|---:|---|")
    with tempfile.TemporaryDirectory(prefix="xft-durations-") as directory:
        for name in names or ["demo", "smollm2-width"]:
            root = Path(directory) / name
            recipe = DEMO if name == "demo" else _narrow_recipe(root)
            os.environ["XFT_HOME"] = str(root / "home")
            for run in range(RUNS):
                for role, planned, basis, seconds, is_within in compare(recipe):
                    print(f"| {name} | {run + 1} | {role} | {planned} | {basis} | {seconds:.1f} | {is_within} |", flush=True)
                    total, within = total + 1, within + is_within
    print(f"\n{within} of {total} stages ended within their range.")


def compare(path: Path) -> list[tuple[str, str, str, float, bool]]:
    """Plan and run the recipe. Returns for each stage: role, range, the range's basis, seconds, whether it was within."""
    options = parser().parse_args(["plan", str(path)])
    recipe = load_recipe(path, [])
    config = find_config(base_model(recipe))
    assert config is not None
    shape = read_shape(config)
    plan = make_plan(recipe, shape, plan_command.data_of(recipe, config, options), problem_count(recipe))
    times = plan_command.StageTimes(shape, options).of(plan, recipe)
    subprocess.run([sys.executable, "-m", "flows.cli", "run", str(path)], cwd=REPOSITORY, check=True, capture_output=True)
    took = {role: found[-1].seconds for role, found in remembered(recipe, shape).items() if found}
    shutil.rmtree(Path(os.environ["XFT_HOME"]) / "artifacts")
    found = []
    for role, seconds in took.items():
        time = times[role]
        assert time is not None
        found.append((role, between(time), time.basis, seconds, time.contains(seconds)))
    return found


def _narrow_recipe(root: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from xft_core.models.loading import load_tokenizer

    torch.manual_seed(0)
    model = root / "model"
    tokenizer = load_tokenizer(DEMO_DIR / "model")
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMOLLM2, vocab_size=len(tokenizer))).save_pretrained(model)
    tokenizer.save_pretrained(model)
    content = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    content["name"], content["model"] = "smollm2-width", {"path": str(model)}
    content["sft"] |= {"max_steps": 6}
    content["merge"] |= {"max_steps": 4}
    content["generate"] |= {"max_new_tokens": 32}
    content["data"] |= {"max_rows": 200, "held_out_rows": 20}
    content["evaluate"] |= {"max_problems": 8}
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return recipe
