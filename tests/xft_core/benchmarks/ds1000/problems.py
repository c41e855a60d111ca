"""Problems in DS-1000's form that need only this package's own dependencies."""

from typing import Any

CONTEXT = '''
import copy
import numpy as np


def generate_test_case(test_case_id):
    data = np.array([3, 1, 2])
    return data, np.sort(data)


def exec_test(result, ans):
    np.testing.assert_array_equal(result, ans)
    return 1


exec_context = r"""
import numpy as np
a = test_input
[insert]
"""


def test_execution(solution: str):
    code = exec_context.replace("[insert]", solution)
    for i in range(1):
        test_input, expected_result = generate_test_case(i + 1)
        test_env = {"test_input": test_input}
        exec(code, test_env)
        assert exec_test(test_env["result"], expected_result)
'''
NO_LOOP = '''

def test_string(solution: str):
    assert "for" not in solution.split()
'''
PROMPT = ("Problem:\nSort the array.\nA:\n<code>\nimport numpy as np\na = np.array([3, 1, 2])\n</code>\n"
          "result = ... # put solution in this variable\nBEGIN SOLUTION\n<code>\n")
BODY_PROMPT = ("Problem:\nSort it.\n\nA:\n<code>\nimport numpy as np\nexample_a = np.array([3, 1, 2])\ndef f(a=example_a):\n"
               "    # return the solution in this function\n    # result = f(a)\n    ### BEGIN SOLUTION")

RIGHT = "result = np.sort(a)"


def row(number: int, **changes: Any) -> dict[str, Any]:
    """Return a row of the file; ``library`` and ``perturbation`` go into its metadata."""
    metadata = {"problem_id": number, "library": changes.pop("library", "Own"),
                "perturbation_type": changes.pop("perturbation", "Origin")}
    return {"prompt": PROMPT, "reference_code": RIGHT, "code_context": CONTEXT, "metadata": metadata} | changes
