"""Turn a model's answer into the graded program. Without any toolchain, check that no text is lost or duplicated."""

import pytest

from tests.xft_core.benchmarks.multipl_e.solutions import CLOSING
from xft_core.benchmarks.multipl_e.languages import LANGUAGES
from xft_core.benchmarks.multipl_e.problems import Problem
from xft_core.benchmarks.multipl_e.programs import program, stops

BY_NAME = {language.name: language for language in LANGUAGES.values()}
JAVA_HEAD = "import java.util.*;\nclass Problem {\n    // Twice.\n"
# prompt before the function, its first line, its body, tests, stop tokens
PARTS: dict[str, tuple[str, str, str, str, tuple[str, ...]]] = {
    "js": ("//Twice.\n", "function twice(x){\n", "  return 2 * x;\n", "test();", ("\nfunction ", "\n//")),
    "ts": ("//Twice.\n", "function twice(x: number): number {\n", "  return 2 * x;\n", "test();", ("\nfunction ",)),
    "php": ("<?php\n// Twice.\n", "function twice($x) {\n", "    return 2 * $x;\n", "test();", ("\nfunction", "\n?>")),
    "go": ('package twice_test\n\nimport (\n    "testing"\n    "fmt"\n)\n\n', "func twice(x int) int {\n",
           "    return 2 * x\n", "func TestTwice(t *testing.T) {\n}", ("\nfunc", "struct")),
    "rb": ("# Twice.\n", "def twice(x)\n", "  2 * x\n", "require 'test/unit'", ("\ndef", "\n\n")),
    "lua": ("-- Twice.\n", "local function twice(x)\n", "    return 2 * x\n", "lu = require('luaunit')", ("\nlocal", "\n\n")),
    "pl": ("# Twice.\n", "sub twice {\n    my($x) = @_;\n", "    return 2 * $x;\n", "use Test::Deep;", ("\nsub", "\n\n")),
    "cpp": ("#include<assert.h>\n// Twice.\n", "long twice(long x) {\n", "    return 2 * x; // }\n",
            "}\nint main() {\n    assert(twice(1) == 2);\n}", ("\n}",)),
    "java": (JAVA_HEAD, "    public static long twice(long x) {\n", "        return 2 * x;\n",
             "    }\n    public static void main(String[] args) {\n    }\n\n}", ("\n    }\n",)),
    "rs": ("/// Twice.\n", "fn twice(x: isize) -> isize {\n", "    let _open = '{';\n    2 * x\n",
           "}\n\nfn main() {\n    assert_eq!(twice(1), 2);\n}", ("\n}",)),
    "swift": ("/// Twice.\n", "func twice(x: Int) -> Int {\n", "    let open = \"{\"\n    return 2 * x\n",
              "}\n\nassert(twice(x: 1) == 2)", ("\n}",)),
    "sh": ("#!/bin/bash\n# Twice.\n", "twice() {\n", "    echo $(($1 * 2))\n", "}\n\nset -e\nrun_test", ("\n}",)),
}
EVERY = pytest.mark.parametrize("name", BY_NAME)


def problem(name: str) -> Problem:
    head, first, _, tests, stop_tokens = PARTS[name]
    return Problem(f"Own_{name}", BY_NAME[name], head + first, tests, stop_tokens)


def words(text: str) -> list[str]:
    return text.split()


def whole(name: str, after: str = "") -> str:
    """Return the right program: the function once, closed once, then ``after``, then the tests."""
    head, first, body, tests, _ = PARTS[name]
    closing = CLOSING.get(name, "}")
    return f"{head}{first}{body}{closing}\n{after}\n{tests.replace('}', '', 1) if BY_NAME[name].closes else tests}"


@EVERY
def test_completions_end_at_the_first_stop_token(name: str) -> None:
    body, closing = PARTS[name][2], CLOSING.get(name, "}")
    for rest in (*PARTS[name][4], "\n```\nThis is how it works"):
        completion = body + closing + ("" if rest.lstrip("\n ").startswith("}") else rest) + "\nSomething else {"
        if name == "go" and rest == "struct":
            continue  # occurs anywhere in a line
        assert words(program(problem(name), completion, "completion")) == words(whole(name)), rest
    assert words(program(problem(name), f"{body}{closing}", "completion")) == words(whole(name))
    assert stops(problem(name), "completion") == (*PARTS[name][4], "\n```")


@EVERY
@pytest.mark.parametrize("style", ["magicoder", "chat"])
def test_answers_in_a_fence_go_on_or_begin_anew(name: str, style: str) -> None:
    head, first, body, _, _ = PARTS[name]
    closing = CLOSING.get(name, "}")
    given, expected = problem(name), words(whole(name))
    assert stops(given, style) == ("```",)
    assert words(program(given, f"{body}{closing}\n```\nThis is how it works", style)) == expected
    assert words(program(given, f"{first}{body}{closing}\n```\n", style)) == expected
    if given.language.closes:  # the model may assume that the tests' brace closes the function
        assert words(program(given, body, style)) == expected
    if name not in ("go", "java"):
        again = head.replace("// Twice.\n", "").replace("<?php\n", "")
        assert words(program(given, f"{again}{first}{body}{closing}\n", style)).count("twice") == expected.count("twice")


HELPERS = {
    "js": "function more(x) {\n\n  return x;\n}", "ts": "function more(x: number) {\n  return x;\n}",
    "php": "function more($x) {\n    return $x;\n}", "go": "func more(x int) int {\n    return x\n}",
    "rb": "def more(x)\n\n  x\nend", "lua": "function more(x)\n\n    return x\nend", "pl": "sub more {\n\n    return 1;\n}",
    "cpp": "long more(long x) { return x; }", "java": "    static long more(long x) {\n        return x;\n    }",
    "rs": "fn more(x: isize) -> isize {\n    x\n}",
    "swift": "func more(x: Int) -> Int {\n    return x\n}", "sh": "more() {\n    echo 1\n}"}


@EVERY
def test_functions_after_the_first_are_kept_in_a_fence(name: str) -> None:
    _, first, body, _, _ = PARTS[name]
    closing, expected = CLOSING.get(name, "}"), words(whole(name, HELPERS[name]))
    for start in ("", first):
        answer = f"{start}{body}{closing}\n\n{HELPERS[name]}\n```"
        assert words(program(problem(name), answer, "chat")) == expected


@pytest.mark.parametrize(("name", "answer"), [
    ("cpp", "#include <iostream>\n{first}{body}}}\n\nint main() {{\n    if (twice(1)) {{ return 1; }}\n    return 0;\n}}\n"),
    ("cpp", "int main() {{ return 0; }}\n{first}{body}}}\n"),
    ("rs", "{first}{body}}}\n\nfn main() {{\n    println!(\"{{}}\", twice(1));\n}}\n"),
    ("java", "import java.util.function.*;\n\npublic class Problem {{\n{first}{body}    }}\n\n"
             "    public static void main(String[] args) {{\n        System.out.println(twice(1));\n    }}\n}}\n"),
    ("java", "{body}    }}\n\n    public static void main(String[] args) {{\n    }}\n}}\n"),
    ("go", 'package main\n\nimport "fmt"\nimport (\n    "sort"\n)\n\n{first}{body}}}\n'),
    ("php", "<?php\n{first}{body}}}\n?>"),
    ("js", "export {first}{body}}}\n"),
])
def test_whole_files_in_a_fence(name: str, answer: str) -> None:
    head, first, body, tests, _ = PARTS[name]
    made = program(problem(name), answer.format(first=first, body=body), "chat")
    for once in (first.strip(), body.strip(), tests.strip("} \n").splitlines()[0]):
        assert made.count(once) == 1, once
    assert made.count(" main(") == tests.count(" main(")
    for import_line in ("import java.util.*;", "import java.util.function.*;", '"testing"', '"sort"', '"fmt"', "<?php"):
        assert made.count(import_line) == (1 if import_line in head + answer else 0), import_line
    assert made.count("package ") == (1 if name == "go" else 0) and "export" not in made and "?>" not in made
    if name != "rs":
        assert made.count("{") - made.count("}") == body.count("{") - body.count("}")
