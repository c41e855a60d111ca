"""Turn the model's output into the program to grade, so that a right answer is graded right in every prompt style.

completion        as in MultiPL-E: prompt, completion up to the first stop token, tests. The stop tokens end a
                  completion where the function ends; anything that the model would have written after that is ignored.
magicoder, chat   the whole answer up to the fence counts: MultiPL-E's stop tokens would cut an answer at its first blank
                  line (rb, lua, pl) or its second function. It may continue with the function's body, or write the
                  function again, with includes, imports or a class around it. If it has its own main function, which
                  would clash with that of the tests, that is left out.

In cpp, java, rs, swift and sh the tests begin with the brace that closes the function. If the answer has already closed it,
that brace is left out.
"""

import re

from xft_core.benchmarks.multipl_e.languages import Language
from xft_core.benchmarks.multipl_e.problems import Problem
from xft_core.benchmarks.prompts import FENCE, cut

# How to find a function's name in the prompt's last lines, and how to recognize the function in an answer.
_FUNCTION = (r"\bfunction\s+(\w+)\s*[(<]", r"\b(?:function\s+{name}\s*[(<]|(?:const|let|var)\s+{name}\s*=)")
_TYPED = (r"([A-Za-z_]\w*)\s*\(", r"^[^\n;=({{}}]*[\w>&*\]]\s+{name}\s*\([^;{{}}]*\)[^;{{}}]*\{{")
_DECLARATIONS = {
    "js": _FUNCTION,
    "ts": _FUNCTION,
    "cpp": _TYPED,
    "java": _TYPED,
    "rs": (r"\bfn\s+(\w+)", r"\bfn\s+{name}\s*[(<][^{{]*\{{"),
    "swift": (r"\bfunc\s+(\w+)", r"\bfunc\s+{name}\s*[(<][^{{]*\{{"),
    "go": (r"\bfunc\s+(\w+)", r"^func\s+{name}\s*\("),
    "php": (r"\bfunction\s+(\w+)", r"\bfunction\s+{name}\s*\("),
    "rb": (r"\bdef\s+(\w+)", r"\bdef\s+{name}\b"),
    "lua": (r"\bfunction\s+(\w+)", r"\bfunction\s+{name}\s*\(|\b{name}\s*=\s*function\b"),
    "pl": (r"\bsub\s+(\w+)", r"\bsub\s+{name}\b"),
    "sh": (r"(\w+)\s*\(\)", r"^\s*(?:{name}\s*\(\)|function\s+{name}\b)\s*\{{"),
}
_MAIN = {
    "cpp": re.compile(r"^\s*(?:int|void|auto)\s+main\s*\([^)]*\)[^{;]*\{", re.MULTILINE),
    "java": re.compile(r"^\s*public\s+static\s+void\s+main\s*\([^)]*\)[^{;]*\{", re.MULTILINE),
    "rs": re.compile(r"^\s*(?:pub\s+)?fn\s+main\s*\(\s*\)[^{;]*\{", re.MULTILINE),
}
# Braces, and the comments, strings and characters in which braces do not count (a Rust lifetime is not a character).
_TOKENS = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\br(\#+)".*?"\1|"(?:\\.|[^"\\])*"|'(?:\\[^'\n]*|[^\\'\n])'|[{}]""", re.DOTALL)
_IMPORT_BLOCK = re.compile(r'^import\s*(?:\(([^)]*)\)|((?:[\w.]+\s+)?"[^"\n]+"))[^\n]*\n?', re.MULTILINE)


def stops(problem: Problem, style: str) -> tuple[str, ...]:
    """The texts that end an answer to the problem."""
    return (*problem.stop_tokens, f"\n{FENCE}") if style == "completion" else (FENCE,)


def program(problem: Problem, completion: str, style: str) -> str:
    """The program to grade."""
    if style != "completion":
        return _from_fence(problem, cut(completion, (FENCE,)))
    # A newline is added: java's stop token ends in one, and the model may have stopped before it.
    text = problem.prompt + cut(completion + "\n", stops(problem, style))
    if problem.language.closes:
        text = text[:_closing(text, len(problem.prompt), problem.language)]
    return f"{text.rstrip()}\n{problem.tests}"


def _from_fence(problem: Problem, answer: str) -> str:
    language = problem.language
    answer = _without_main(answer, language)
    declaration = _declaration(problem)
    written_anew = declaration.search(answer)
    text = _anew(problem, answer, written_anew.start()) if written_anew else problem.prompt + answer
    if not language.closes:
        return f"{text.rstrip()}\n{problem.tests}"
    found = declaration.search(text) if written_anew else None
    end = _closing(text, found.end() if found else len(problem.prompt), language)
    if end is None:
        return f"{text.rstrip()}\n{problem.tests}"
    rest = text[end + 1:]
    if language.name == "java":
        rest = rest[:_closing(rest, 0, language)]  # the class is closed by the tests
    return f"{text[:end]}}}\n{rest.strip()}\n{problem.tests.replace('}', '', 1)}"


def _declaration(problem: Problem) -> re.Pattern[str]:
    """A pattern that finds the problem's function in an answer that writes it again."""
    in_prompt, in_answer = _DECLARATIONS[problem.language.name]
    lines = problem.prompt.rstrip().splitlines()[-2:]  # perl's last line takes the arguments apart
    names = [found[1] for line in lines if (found := re.search(in_prompt, line))]
    return re.compile(in_answer.format(name=re.escape(names[-1] if names else "")), re.MULTILINE)


def _anew(problem: Problem, answer: str, place: int) -> str:
    """An answer that writes the function again (at ``place``), after the parts of the prompt that it leaves out."""
    language = problem.language
    lines = problem.prompt.rstrip().splitlines()
    head = lines[:-2] if language.name == "pl" else lines[:-1]
    if language.name == "java":
        return _java_class(head, answer, place)
    if language.name == "go":
        return _go_file(problem, answer)
    if language.name == "php":
        answer = re.sub(r"<\?php|\?>", "", answer)
    if language.name in ("js", "ts"):
        answer = re.sub(r"^export\s+(?:default\s+)?(?=\w)", "", answer, flags=re.MULTILINE)
    own = {line.strip() for line in answer.splitlines()}
    if language.name == "rs":
        head = [line for line in head if line.strip() not in own]
    elif language.name == "cpp" and {line.strip() for line in head if not line.startswith("//")} <= own:
        head = []
    return "\n".join([*head, answer])


def _java_class(head: list[str], answer: str, place: int) -> str:
    """The members of the answer's class with the function, placed in the prompt's class; imports go to the top."""
    members, imports = answer, re.findall(r"^\s*import\s[^;\n]*;", answer, re.MULTILINE)
    for opened in re.finditer(r"^[^\n/*]*\bclass\s+\w+[^{;]*\{", answer[:place], re.MULTILINE):
        end = _closing(answer, opened.end(), None)
        if end is None or end > place:
            members = answer[opened.end():end]
    members = re.sub(r"^\s*(?:import|package)\s[^;\n]*;", "", members, flags=re.MULTILINE)
    return "\n".join([*imports, *head, members])


def _go_file(problem: Problem, answer: str) -> str:
    """The answer as a file with the prompt's package clause and one block with the imports of prompt and answer."""
    imports: dict[str, None] = {}
    for text in (problem.prompt, answer):
        for block in _IMPORT_BLOCK.finditer(text):
            lines = re.sub(r"//[^\n]*", "", block[1] or block[2]).replace(";", "\n").splitlines()
            imports |= dict.fromkeys(line.strip() for line in lines if line.strip())
    package = next(line for line in problem.prompt.splitlines() if line.startswith("package "))
    body = re.sub(r"^package\s+\w+[^\n]*", "", _IMPORT_BLOCK.sub("", answer), flags=re.MULTILINE)
    return "\n".join([package, "import (", *imports, ")", body])


def _without_main(answer: str, language: Language) -> str:
    pattern = _MAIN.get(language.name)
    found = pattern.search(answer) if pattern else None
    if found is None:
        return answer
    end = _closing(answer, found.end(), language)
    return answer[:found.start()] + ("" if end is None else answer[end + 1:])


def _closing(text: str, start: int, language: Language | None) -> int | None:
    """Where the block that is open at ``start`` closes; None if it does not."""
    if language is not None and language.name == "sh":  # braces are words in sh: only the layout shows a function's end
        found = re.compile(r"^\}", re.MULTILINE).search(text, start)
        return found.start() if found else None
    depth = 1
    for token in _TOKENS.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.start()
    return None
