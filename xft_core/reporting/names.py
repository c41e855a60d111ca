"""The display names of models and benchmarks."""

import re

from xft_core.recipe.labels import path_forms
from xft_core.recipe.sections import BaselineConfig
from xft_core.recipe.step import DPO

BENCHMARK_TITLES = {"humaneval": "HumanEval", "mbpp": "MBPP", "ds1000": "DS-1000"}
# The files that evalplus releases contain base and extended tests; their version is in the results.
RELEASED = {"HumanEvalPlus-v": "HumanEval", "HumanEvalPlus-Mini-v": "HumanEval mini", "MbppPlus-v": "MBPP"}
MULTIPL_E = re.compile(r"(?:.*/)?multipl-e/(?:humaneval-)?(\w+)(?:\.jsonl)?(?:\.gz)?")


def file_stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".jsonl")


def benchmark_title(name: str) -> str:
    """The display title of a benchmark of the recipe (a name, ``demo:`` or a path)."""
    if name in BENCHMARK_TITLES:
        return BENCHMARK_TITLES[name]
    multipl_e = MULTIPL_E.fullmatch(name)
    if multipl_e:
        return f"MultiPL-E {multipl_e[1]}"
    stem = file_stem(path_forms(name)[0])
    released = next((title for start, title in RELEASED.items() if stem.startswith(start)), stem)
    return f"demo {stem}" if name.startswith("demo:") else released


def dense_name(model: str, baseline: BaselineConfig) -> str:
    """The display name of a dense model, from its name in a run (``sft_soup_wise_0_7``, see recipe/dense_steps.py)."""
    if between := re.fullmatch(r"merged_wise_([\d_]+)", model):
        return f"merged, WiSE {between[1].replace('_', '.')}"
    found = re.fullmatch(r"sft(?:_(epochs|tokens|flops))?(_average|_soup)?(?:_wise_([\d_]+))?", model)
    if model == DPO:
        return "merged, DPO"
    if found is None:
        return model.replace("_", " ")
    match, kind, share = found.groups()
    average = "EMA" if baseline.average == "ema" else f"mean of last {baseline.average_count}"
    name = {"_soup": f"SFT soup of {baseline.runs}", "_average": f"SFT, {average}"}.get(kind or "", "SFT (dense)")
    first = "" if baseline.match[0] == "epochs" else baseline.match[0]
    name += {"tokens": ", equal tokens", "flops": ", equal work", "epochs": ", own epochs"}.get(match or first, "")
    return name + (f", WiSE {share.replace('_', '.')}" if share else "")
