"""The names by which models and benchmarks are shown."""

import re

from xft_core.recipe.labels import path_forms

BENCHMARK_TITLES = {"humaneval": "HumanEval", "mbpp": "MBPP", "ds1000": "DS-1000"}
# The files that evalplus releases hold base and extended tests; their version is in the results.
RELEASED = {"HumanEvalPlus-v": "HumanEval", "HumanEvalPlus-Mini-v": "HumanEval mini", "MbppPlus-v": "MBPP"}
MULTIPL_E = re.compile(r"(?:.*/)?multipl-e/(?:humaneval-)?(\w+)(?:\.jsonl)?(?:\.gz)?")


def file_stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".jsonl")


def benchmark_title(name: str) -> str:
    """What a person calls a benchmark of the recipe (a name, ``demo:`` or a path)."""
    if name in BENCHMARK_TITLES:
        return BENCHMARK_TITLES[name]
    multipl_e = MULTIPL_E.fullmatch(name)
    if multipl_e:
        return f"MultiPL-E {multipl_e[1]}"
    stem = file_stem(path_forms(name)[0])
    released = next((title for start, title in RELEASED.items() if stem.startswith(start)), stem)
    return f"demo {stem}" if name.startswith("demo:") else released
