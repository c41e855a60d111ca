"""When an output counts as right: the rules of evalplus 0.3.1 (``evalplus.eval.unsafe_execute``), with one bug fixed.

evalplus's check of HumanEval/32 (find_zero) never counts an input as done, so no program passes. Its rule, that the
polynomial is near zero at the answer, is applied here as intended (and as evalplus fixed it after 0.3.1).
"""

import sys
from typing import Any

from xft_core.benchmarks.evalplus.contained.evalplus_files import evalplus_module

ORACLES = "eval/_special_oracle.py"
FLOAT_ATOL, RTOL = 1e-6, 1e-7


def dataset_of(task_id: str) -> str:
    """evalplus's name of the data set whose special rules apply to a problem: humaneval, mbpp, or custom for none."""
    return {"HumanEval": "humaneval", "Mbpp": "mbpp"}.get(task_id.split("/")[0], "custom")


def wants_not_none(dataset: str, entry_point: str) -> bool:
    """Whether only None or not None matters."""
    return dataset == "mbpp" and entry_point in evalplus_module(ORACLES).MBPP_OUTPUT_NOT_NONE_TASKS


def has_many_answers(dataset: str, entry_point: str) -> bool:
    """Whether outputs are judged by a condition instead of the reference's output."""
    return (dataset, entry_point) == ("humaneval", "find_zero")


def are_floats(value: Any) -> bool:
    """evalplus's ``is_floats``, without importing numpy."""
    if isinstance(value, float):
        return True
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.dtype in (numpy.float64, numpy.float32)


def is_right(dataset: str, entry_point: str, arguments: list[Any], output: Any, expected: Any, atol: float) -> bool:
    """Whether ``output`` counts as right. ``atol``: absolute tolerance for numbers; if it is 0, FLOAT_ATOL for floats.

    An exception means that it does not, as in evalplus.
    """
    oracle = evalplus_module(ORACLES)
    if has_many_answers(dataset, entry_point):
        return bool(abs(oracle._poly(*arguments, output)) <= atol)
    same = output == expected
    if dataset == "mbpp":
        if entry_point == "are_equivalent":
            same = same or True
        elif entry_point == "sum_div":
            same = same or output == 0
        elif entry_point == "surface_Area":
            same = same or abs(output - oracle._surface_Area(*arguments)) <= atol
        elif entry_point == "digit_distance_nums":
            same = same or output == oracle._digit_distance_nums(*arguments)
        elif entry_point in oracle.MBPP_OUTPUT_SET_EQ_TASKS:
            same = set(output) == set(expected)
        elif entry_point in oracle.MBPP_OUTPUT_NOT_NONE_TASKS:
            same = output == expected if isinstance(output, bool) else expected == (output is not None)
    if atol == 0 and are_floats(expected):
        atol = FLOAT_ATOL
    if same or atol == 0:
        return bool(same)
    if type(output) is not type(expected) or (isinstance(expected, list | tuple) and len(output) != len(expected)):
        return False
    import numpy

    return bool(numpy.allclose(output, expected, rtol=RTOL, atol=atol))
