"""The languages of MultiPL-E that are graded here, each with its file, its commands, and a program to test them.

The commands do the same as MultiPL-E's own evaluation, including type errors of TypeScript and go vet. ``--skipLibCheck``
(tsc does not recheck its own libraries) and the flags for a small Java VM only save time. In commands, ``{memory_mb}``
stands for evaluate.memory_limit_mb, and a word that begins a probe (``node``) for the path of that program.
"""

from dataclasses import dataclass

JAVATUPLES = "/usr/share/java/javatuples.jar"
JAVA_FLAGS = ("-Xmx{memory_mb}m", "-Xss64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ActiveProcessorCount=2")
NODE = ("node", "--max-old-space-size={memory_mb}")


@dataclass(frozen=True)
class Canary:
    """A program with a test that tries out a toolchain. ``{body}`` stands for its right, wrong or broken body."""

    program: str
    right: str = "return a + b;"
    wrong: str = "return a - b;"
    broken: str = "return a +;"


@dataclass(frozen=True)
class Language:
    """How programs of one language are graded.

    name           the name in file names and reports
    fence          the name in a Markdown fence
    file           the file name that a program is saved under
    compile, run   commands; compile is empty if nothing is compiled. An exit status other than 0 is a failure
    probes         commands that succeed if the toolchain is installed; the first one prints its version
    needed         files that must exist too
    configuration  patterns of files outside /usr that the programs read, if any
    packages       the Debian packages with all of this
    end            statement that prints ``{token}``, inserted where the tests are done: before the last ``braces`` closing
                   braces. "" if the test tool itself prints what ``done`` matches
    done           regular expression that matches standard output only if all tests ran and passed
    limit_memory   whether address space can be limited: some reserve far more than they use, and get a flag for the heap
    cache          environment variable that names a directory of compiled libraries, which is filled once, from the canary,
                   and copied for each program; "" for none
    closes         whether ``tests`` begins with the brace that closes the function
    """

    name: str
    fence: str
    file: str
    run: tuple[str, ...]
    probes: tuple[tuple[str, ...], ...]
    packages: str
    canary: Canary
    compile: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    configuration: tuple[str, ...] = ()
    end: str = ""
    braces: int = 0
    done: str = "{token}"
    limit_memory: bool = True
    closes: bool = False
    cache: str = ""
    environment: tuple[tuple[str, str], ...] = ()


_JS_TEST = "const assert = require('node:assert');\nfunction test() {\n  assert.deepEqual(add(1, 2), 3);\n}\n\ntest();\n"
# Libraries that answers import, compiled into the cache with the canary.
_GO_LIBRARIES = "".join(
    f'    _ "{name}"\n' for name in ("bytes", "crypto/md5", "errors", "math", "os", "regexp", "sort", "strconv", "strings",
                                   "time", "unicode", "unicode/utf8"))

LANGUAGES: dict[str, Language] = {
    "js": Language(
        name="js", fence="javascript", file="main.js", run=(*NODE, "main.js"), probes=(("node", "--version"),),
        packages="nodejs", end='console.log("{token}");', limit_memory=False,
        canary=Canary("function add(a, b){\n  {body}\n}\n\n" + _JS_TEST)),
    "ts": Language(
        name="ts", fence="typescript", file="main.ts", run=(*NODE, "main.js"),
        compile=(*NODE, "tsc", "--target", "esnext", "--skipLibCheck", "main.ts"),
        probes=(("tsc", "--version"), ("node", "--version")), packages="node-typescript",
        end='console.log("{token}");', limit_memory=False,
        canary=Canary("function add(a: number, b: number): number {\n  {body}\n}\n\ndeclare var require: any;\n" + _JS_TEST)),
    "cpp": Language(
        name="cpp", fence="cpp", file="main.cpp", run=("./main",),
        compile=("g++", "-std=c++17", "-O1", "main.cpp", "-o", "main", "-lcrypto"),
        probes=(("g++", "--version"),), needed=("/usr/include/openssl/md5.h",), packages="g++ libssl-dev",
        end='std::puts("{token}");', braces=1, closes=True,
        canary=Canary("#include<assert.h>\n#include<bits/stdc++.h>\nlong add(long a, long b) {\n    {body}\n}\n"
                      "int main() {\n    auto candidate = add;\n    assert(candidate((1), (2)) == (3));\n}\n")),
    "java": Language(
        name="java", fence="java", file="Problem.java", run=("java", *JAVA_FLAGS, "-ea", "-cp", f".:{JAVATUPLES}", "Problem"),
        compile=("javac", *(f"-J{flag}" for flag in JAVA_FLAGS), "-encoding", "UTF8", "-cp", JAVATUPLES, "-d", ".",
                 "Problem.java"),
        probes=(("javac", "-version"), ("java", "-version")), needed=(JAVATUPLES,),
        packages="default-jdk-headless libjavatuples-java", end='System.out.println("{token}");', braces=2, closes=True,
        limit_memory=False, configuration=("/etc/java-*",),
        canary=Canary("import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n"
                      "    public static long add(long a, long b) {\n        {body}\n    }\n"
                      "    public static void main(String[] args) {\n    assert(add((1l), (2l)) == (3l));\n    }\n\n}\n")),
    "rs": Language(
        name="rs", fence="rust", file="main.rs", run=("./main",),
        compile=("rustc", "--edition", "2021", "main.rs", "-o", "main"),
        probes=(("rustc", "--version"), ("cc", "--version")), packages="rustc", end='println!("{token}");', braces=1,
        closes=True,
        canary=Canary("fn add(a: isize, b: isize) -> isize {\n    {body}\n}\n\nfn main() {\n    let candidate = add;\n"
                      "    assert_eq!(candidate(1, 2), 3);\n}\n")),
    # Not tested with a toolchain here: Debian 12 has none. As for all languages, the canary runs before anything is graded.
    "swift": Language(
        name="swift", fence="swift", file="main.swift", run=("./main",),
        compile=("swiftc", "-Onone", "-module-cache-path", ".modules", "main.swift", "-o", "main"),  # -O drops assert
        probes=(("swiftc", "--version"),), packages="swiftlang, from Debian 13 on, or swift.org's", end='print("{token}")',
        closes=True, limit_memory=False,
        canary=Canary("import Foundation\n\nfunc add(a: Int, b: Int) -> Int {\n    {body}\n}\n\nassert(add(a: 1, b: 2) == 3)\n",
                      right="return a + b", wrong="return a - b", broken="return a +")),
    "go_test.go": Language(
        name="go", fence="go", file="main_test.go",
        # Compiled, and checked by go vet as for any test, by running none of its tests.
        compile=("go", "test", "-run", "^$", "-o", "main.test", "main_test.go"),
        run=("./main.test", "-test.paniconexit0"), probes=(("go", "version"),), packages="golang-go", done="^PASS$",
        environment=(("GO111MODULE", "off"), ("GOMAXPROCS", "2"), ("GOTOOLCHAIN", "local")), cache="GOCACHE",
        canary=Canary(f'package add_test\n\nimport (\n    "testing"\n    _ "fmt"\n{_GO_LIBRARIES})\n'
                      '\nfunc add(a int, b int) int {\n    {body}\n}\n\n'
                      "func TestAdd(t *testing.T) {\n    if add(1, 2) != 3 {\n        t.Errorf(\"wrong\")\n    }\n}\n")),
    "php": Language(
        name="php", fence="php", file="main.php", run=("php", "-d", "memory_limit={memory_mb}M", "main.php"),
        probes=(("php", "--version"),), packages="php-cli", configuration=("/etc/php",), end='echo "{token}";',
        canary=Canary("<?php\nfunction add($a, $b) {\n    {body}\n}\n\nfunction test(): void {\n"
                      '    if (add(1, 2) !== 3) { throw new Exception("Test failed!"); }\n}\n\ntest();\n',
                      right="return $a + $b;", wrong="return $a - $b;", broken="return $a +;")),
    "rb": Language(
        name="rb", fence="ruby", file="main.rb", run=("ruby", "main.rb"),
        probes=(("ruby", "--version"), ("ruby", "-e", "require 'test/unit'; exit!(true)")), packages="ruby ruby-test-unit",
        done=r"^\d+ tests, \d+ assertions, 0 failures, 0 errors",
        canary=Canary("def add(a, b)\n  {body}\nend\n\nrequire 'test/unit'\nclass TestHumanEval < Test::Unit::TestCase\n"
                      "  def test_add\n    assert_equal(3, add(1, 2))\n  end\nend\n", broken="return a + )")),
    "lua": Language(
        name="lua", fence="lua", file="main.lua", run=("lua5.4", "main.lua"),
        probes=(("lua5.4", "-v"), ("lua5.4", "-e", "require('luaunit')")), packages="lua5.4 lua-unit",
        done=r"^Ran \d+ tests in .* 0 failures",
        canary=Canary("local function add(a, b)\n  {body}\nend\n\nlu = require('luaunit')\n\nfunction test_humaneval()\n"
                      "    lu.assertEquals(add(1, 2), 3)\nend\n\nos.exit(lu.LuaUnit.run())\n")),
    "pl": Language(
        name="pl", fence="perl", file="main.pl", run=("perl", "main.pl"),
        probes=(("perl", "-e", "print $^V"), ("perl", "-MTest::Deep", "-e", "1")),
        packages="perl libtest-deep-perl", configuration=("/etc/perl",),
        end='print "{token}";',
        canary=Canary("sub add {\n    my($a, $b) = @_;\n    {body}\n}\n\nuse Test::Deep;\n\n"
                      "unless(eq_deeply(add(1, 2), 3)) {\n    exit 1;\n}\n",
                      right="return $a + $b;", wrong="return $a - $b;", broken="return $a +;")),
    "sh": Language(
        name="sh", fence="bash", file="main.sh", run=("bash", "main.sh"), probes=(("bash", "--version"),), packages="bash",
        end="echo {token}", closes=True,
        canary=Canary('#!/bin/bash\nadd() {\n    {body}\n}\n\ncandidate() {\n    add "$@"\n}\n\nset -e\nrun_test() {\n'
                      '    [[ $(candidate "1" "2") = "3" ]]\n}\n\nrun_test\n',
                      right="echo $(($1 + $2))", wrong="echo $(($1 - $2))", broken="if then; echo $(($1 + $2))")),
}
