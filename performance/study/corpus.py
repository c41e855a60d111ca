"""Python code under permissive licences: the standard library and packages that the constraints file pins.

Packages are split once, by name, into parts: pre-training of the model, and docstring and body pairs for training, for choices
(reserved) and for reporting. No package is in two parts, so no function is either.
"""

import ast
import random
import sysconfig
import textwrap
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

# Licences as the packages state them: PSF, BSD, MIT or Apache 2.0.
PRETRAINING = ("the standard library", "numpy", "scipy", "scikit-learn", "pandas", "torch")
TRAINING = (
    "SQLAlchemy", "sympy", "prefect", "mlflow", "fonttools", "nltk", "accelerate", "huggingface_hub", "datasets", "rich",
    "alembic", "aiohttp", "pydantic")
RESERVED = ("matplotlib", "Werkzeug", "fsspec", "joblib")
REPORT = ("networkx", "Pygments", "click", "GitPython", "anyio", "Jinja2", "babel", "websockets")

TESTS = frozenset({"test", "tests", "testing", "_vendor", "vendor", "idlelib", "lib2to3", "site-packages", "generated"})
LARGEST_FILE = 200_000  # characters; larger ones are mostly tables
BODY = (40, 400)  # characters of a body
DOCSTRING = (20, 200)  # characters of a docstring's first paragraph
REQUEST = "Write the body of this Python function.\n```python\n{head}\n```"
ANSWER = "```python\n{body}\n```"


def files(package: str) -> list[Path]:
    """Return the package's own Python files sorted by path, without tests and vendored code."""
    if package == PRETRAINING[0]:
        root = Path(sysconfig.get_paths()["stdlib"])
        found = [(path.relative_to(root), path) for path in root.rglob("*.py")]
    else:
        listed = distribution(package).files or []
        own = [path for path in listed if path.suffix == ".py" and path.parts[0] != ".."]
        found = [(Path(str(path)), Path(str(path.locate()))) for path in own]
    return [path for relative, path in sorted(found) if not TESTS & set(relative.parts) and path.is_file()]


def texts(package: str) -> Iterator[str]:
    """Yield the files' contents, without files that are too long or not UTF-8."""
    for path in files(package):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if 0 < len(text) <= LARGEST_FILE:
            yield text


def pairs(package: str) -> Iterator[dict[str, str]]:
    """Yield rows of instruction (a function's signature and docstring) and response (its body), in the order of the files.

    Instructions contain only the docstring's first paragraph. Trivial bodies (``pass``, ``...``, one raise) are skipped.
    """
    for text in texts(package):
        try:
            tree = ast.parse(text)
        except (SyntaxError, RecursionError):
            continue
        lines = text.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (row := _pair(node, lines)):
                yield row


def _pair(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> dict[str, str] | None:
    docstring = (ast.get_docstring(node) or "").split("\n\n")[0].strip()
    own = node.body[1:]
    if not own or not DOCSTRING[0] <= len(docstring) <= DOCSTRING[1] or '"""' in docstring or "\\" in docstring:
        return None
    if len(own) == 1 and isinstance(own[0], ast.Pass | ast.Raise):
        return None
    signature = textwrap.dedent("\n".join(lines[node.lineno - 1:node.body[0].lineno - 1]))
    body = textwrap.dedent("\n".join(lines[own[0].lineno - 1:node.end_lineno])).strip("\n")
    if not BODY[0] <= len(body) <= BODY[1] or not signature.rstrip().endswith(":") or len(signature) > DOCSTRING[1]:
        return None
    head = signature + "\n" + textwrap.indent(f'"""{docstring}"""', "    ")
    return {"instruction": REQUEST.format(head=head), "response": ANSWER.format(body=body)}


def sample(packages: tuple[str, ...], count: int, seed: int) -> list[dict[str, str]]:
    """Return ``count`` different pairs, drawn evenly from the packages; fewer if there are not enough."""
    generator = random.Random(f"{'/'.join(packages)} {seed}")
    pools = []
    for package in packages:
        rows = list({row["instruction"]: row for row in pairs(package)}.values())
        generator.shuffle(rows)
        pools.append(rows)
    found: dict[str, dict[str, str]] = {}
    while len(found) < count and any(pools):
        for pool in pools:
            if pool and len(found) < count:
                row = pool.pop()
                found.setdefault(row["response"], row)  # keeps a body that several functions share only once
    return list(found.values())
