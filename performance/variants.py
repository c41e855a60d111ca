"""Make all kinds of programs from a problem's canonical solution: right, wrong, of another type, slow, crashing."""

import ast
import random

from xft_core.benchmarks.evalplus.problems import Problem

WRAPPED = "\n_original = {entry}\n\ndef {entry}(*arguments):\n{body}\n"

# Bodies of a function that calls the original. ``r`` is what it returned.
BODIES = {
    "another type: tuple or list": "r = _original(*arguments)\n"
                                   "return tuple(r) if isinstance(r, list) else list(r) if isinstance(r, tuple) else r",
    "another type: float": "r = _original(*arguments)\nreturn float(r) if type(r) is int and abs(r) < 2**50 else r",
    "another type: whole float as int": "r = _original(*arguments)\n"
                                         "return int(r) if isinstance(r, float) and r == int(r) else r",
    "another type: bool as int": "r = _original(*arguments)\nreturn int(r) if isinstance(r, bool) else r",
    "another type: text": "return str(_original(*arguments))",
    "another type: numpy scalar": "import numpy\nr = _original(*arguments)\n"
                                  "return numpy.float64(r) if isinstance(r, float) else numpy.int64(r) "
                                  "if type(r) is int and abs(r) < 2**62 else numpy.bool_(r) if isinstance(r, bool) else r",
    "another type: numpy array": "import numpy\nr = _original(*arguments)\nreturn numpy.array(r) if isinstance(r, list) else r",
    "another type: Counter or namedtuple": "import collections\nr = _original(*arguments)\n"
        "if isinstance(r, dict): return collections.Counter(r)\n"
        "if isinstance(r, tuple): return collections.namedtuple('N', [f'f{i}' for i in range(len(r))])(*r)\n"
        "return r",
    "another type: subclass": "r = _original(*arguments)\n"
        "for base in (str, list, int, float):\n    if type(r) is base: return type('Own', (base,), {})(r)\nreturn r",
    "another type: set": "r = _original(*arguments)\nreturn set(r) if isinstance(r, (list, tuple)) else r",
    "another type: generator": "return (item for item in [_original(*arguments)])",
    "another type: object": "return object()",
    "close: one part in 10^9": "r = _original(*arguments)\nreturn r * (1 + 1e-9) if isinstance(r, float) else r",
    "close: one part in 10^4": "r = _original(*arguments)\nreturn r * (1 + 1e-4) if isinstance(r, float) else r",
    "reverses": "r = _original(*arguments)\nreturn r[::-1] if isinstance(r, (list, tuple, str)) else r",
    "none": "return None",
    "changes its input": "r = _original(*arguments)\n"
                         "for a in arguments:\n    if isinstance(a, list): a.clear()\nreturn r",
    "prints": "print('x' * 1000)\nreturn _original(*arguments)",
    "counts its calls": "global _n\n_n = globals().get('_n', 0) + 1\nreturn _original(*arguments) if _n < 30 else None",
    "slow, in time": "import time\nif not globals().get('_slept'):\n    globals()['_slept'] = True\n    time.sleep(0.3)\n"
                     "return _original(*arguments)",
    "slow, too slow": "import time\ntime.sleep(2.5)\nreturn _original(*arguments)",
    "endless": "while True: pass",
    "catches its time limit": "try:\n    while True: pass\nexcept BaseException:\n    pass\nreturn _original(*arguments)",
    "raises": "raise ValueError('no')",
    "raises sometimes": "assert len(repr(arguments)) % 3\nreturn _original(*arguments)",
    "recursion": "return {entry}(*arguments)",
    "leaves": "import os\nos._exit(0)",
    "exits": "import sys\nsys.exit(0)",
    "reads input": "input()\nreturn _original(*arguments)",
    "opens a file": "open('/tmp/x', 'w')\nreturn _original(*arguments)",
    "recursive output": "r = []\nr.append(r)\nreturn r",
    "not a number": "return float('nan')",
    "half a character": "return chr(0xd800)",
}
WHOLE = {
    "no program": "This is not Python.",
    "no function": "x = 1\n",
    "endless at definition": "while True: pass\n",
    "raises at definition": "raise RuntimeError('no')\n",
    "leaves at definition": "import os\nos._exit(0)\n",
}
MUTATIONS = 4


def variants(problem: Problem, seed: int) -> dict[str, str]:
    """Return programs by kind; the wrong ones depend on ``seed``."""
    canonical = problem.prompt + problem.canonical_solution
    programs = {"canonical": canonical} | WHOLE
    for name, body in BODIES.items():
        indented = "\n".join("    " + line for line in body.replace("{entry}", problem.entry_point).splitlines())
        programs[name] = canonical + WRAPPED.format(entry=problem.entry_point, body=indented)
    for index in range(MUTATIONS):
        programs[f"mutation {index}"] = mutated(canonical, random.Random(f"{seed} {problem.task_id} {index}"))
    return programs


def mutated(program: str, generator: random.Random) -> str:
    """Return the program with one small change: a constant, an operator, a comparison, or a removed statement."""
    tree = ast.parse(program)
    places = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp | ast.Compare | ast.If | ast.While)
              or (isinstance(node, ast.Constant) and type(node.value) is int)]
    if not places:
        return program
    node = generator.choice(places)
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        node.value += generator.choice((-1, 1))
    elif isinstance(node, ast.BinOp):
        node.op = generator.choice((ast.Add(), ast.Sub(), ast.Mult(), ast.FloorDiv(), ast.Mod()))
    elif isinstance(node, ast.Compare):
        node.ops[0] = generator.choice((ast.Lt(), ast.LtE(), ast.Gt(), ast.GtE(), ast.Eq(), ast.NotEq()))
    else:
        node.test = ast.UnaryOp(ast.Not(), node.test)
    return ast.unparse(ast.fix_missing_locations(tree))
