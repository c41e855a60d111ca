"""Misbehaving programs in the languages whose toolchains are installed. Each is right only if its attack succeeds."""

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.xft_core.benchmarks.multipl_e.test_grading import COMPILED, EACH_LANGUAGE, grader
from xft_core.benchmarks.benchmark import Verdict
from xft_core.benchmarks.multipl_e.grading import MultiPLEGrader
from xft_core.benchmarks.multipl_e.languages import LANGUAGES
from xft_core.recipe.sections import EvaluateConfig

ANY: Any = None  # the problem plays no part in a verdict, because its tests are in the program
BY_NAME = {language.name: language for language in LANGUAGES.values()}

EXITS = {
    "js": "process.exit(0);", "ts": "return (globalThis as any).process.exit(0);", "cpp": "std::exit(0);",
    "java": "System.exit(0); return 3;", "rs": "std::process::exit(0);", "go": 'panic(fmt.Sprint(os.Getpid() + exit()))',
    "php": "exit(0);", "rb": "exit!(true)", "lua": "os.exit(0)", "swift": "exit(0)", "pl": "exit 0;", "sh": "exit 0"}

ATTACKS = {
    "js reads a file": ("js", "try {{ return require('fs').readFileSync('{secret}') ? 3 : 0; }} catch (error) {{ return 0; }}"),
    "js writes a file": (
        "js", "try {{ require('fs').writeFileSync('{outside}', 'x'); return 3; }} catch (error) {{ return 0; }}"),
    "js uses the network": (
        "js", "const command = 'echo x > /dev/tcp/127.0.0.1/{port}';\n"
              "  return require('child_process').spawnSync('bash', ['-c', command]).status === 0 ? 3 : 0;"),
    "js sees the environment": ("js", "return process.env.XFT_TEST_SECRET ? 3 : 0;"),
    "js fills the memory": ("js", "const all = [];\n  while (true) {{ all.push('x'.repeat(1000) + all.length); }}"),
    "sh writes a file": ("sh", "echo x > {outside} && echo 3"),
    "sh uses the network": ("sh", "(echo x > /dev/tcp/127.0.0.1/{port}) && echo 3"),
    "sh kills the runner": ("sh", "kill -9 {pid} && echo 3"),
    "sh kills all": ("sh", "kill -9 -1; sleep 1; echo 3"),
    # It counts without starting a process, because bash keeps retrying when it may not start one.
    "sh is a fork bomb": (
        "sh", "bomb() {{ bomb | bomb & }}; bomb; n=0; until [ $n -gt 400 ]; do set -- /proc/[0-9]*; n=$#; done; echo 3"),
    "sh fills the disk": ("sh", "head -c 2000000000 /dev/zero > big && echo 3"),
    "sh writes to the home directory": ("sh", "touch {home}/xft_test && echo 3"),
    "pl removes a file": ("pl", "return unlink('{secret}') ? 3 : 0;"),
    "pl looks at the runner": ("pl", "return open(my $f, '<', '/proc/{pid}/environ') && -s $f ? 3 : 0;"),
    "pl sleeps": ("pl", "$SIG{{TERM}} = 'IGNORE'; fork; fork; sleep 1000; return 3;"),
    "php starts a program outside": ("php", "exec('touch {outside}', $out, $status);\n    return $status === 0 ? 3 : 0;"),
    "rb reads a file": ("rb", "begin; File.read('{secret}').empty? ? 0 : 3; rescue SystemCallError; 0; end"),
    "lua runs a command": ("lua", "return os.execute('cp {secret} /usr/xft') and 3 or 0"),
    "cpp writes a file": ("cpp", 'std::ofstream out("{outside}"); out << "x"; out.flush(); return out.good() ? 3 : 0;'),
    "cpp loops": ("cpp", "volatile long i = 0; while (true) {{ i = i + 1; }} return 3;"),
    "go uses the network": ("go", 'if _, err := net.Dial("tcp", "127.0.0.1:{port}"); err != nil {{ return 0 }}\n    return 3'),
    "rs writes a file": ("rs", 'if std::fs::write("{outside}", "x").is_ok() {{ 3 }} else {{ 0 }}'),
    "java reads a file": ("java", 'return new java.io.File("{secret}").length() > 0 ? 3 : 0;'),
}
SLOW = {"sh is a fork bomb", "pl sleeps", "js fills the memory", "cpp loops"}
# These can be tried without a sandbox. Each must succeed there, or its failure in the sandbox proves nothing.
HARMLESS = (
    "js reads a file", "js writes a file", "js uses the network", "sh writes a file", "sh uses the network",
    "pl removes a file", "php starts a program outside", "rb reads a file", "cpp writes a file", "go uses the network",
    "rs writes a file", "java reads a file")
GO_IMPORTS = {"go uses the network": '    "net"\n'}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Run a server on this machine; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def attack(name: str, port: int, directory: Path) -> tuple[str, str]:
    """Return language and program of an attack on a file ``secret`` in ``directory``; it may create ``outside`` next to it."""
    directory.chmod(0o777)
    secret = directory / "secret"
    secret.write_text("secret")
    secret.chmod(0o666)
    language, body = ATTACKS[name]
    program = BY_NAME[language].canary.program.replace("{body}", body.format(
        secret=secret, outside=directory / "outside", port=port, pid=os.getpid(), home=Path.home()))
    return language, program.replace("import (\n", "import (\n" + GO_IMPORTS.get(name, ""))


def some(names: Iterable[str]) -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW or ATTACKS[name][0] in COMPILED else [], id=name)
        for name in names]


@pytest.mark.parametrize("name", some(ATTACKS))
def test_attacks_fail_and_leave_nothing(name: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_TEST_SECRET", "secret")
    language, program = attack(name, port, tmp_path)
    verdict = _graded(language, program)
    assert verdict.base in ("fail", "timeout"), verdict
    assert [path.name for path in tmp_path.iterdir()] == ["secret"] and (tmp_path / "secret").read_text() == "secret"
    assert not Path("/usr/xft").exists() and not (Path.home() / "xft_test").exists()
    canary = BY_NAME[language].canary
    assert _graded(language, canary.program.replace("{body}", canary.right)).base == "pass"  # nothing was left behind


@pytest.mark.parametrize("name", some(HARMLESS))
def test_attacks_succeed_without_the_walls(name: str, port: int, tmp_path: Path) -> None:
    language, program = attack(name, port, tmp_path)
    grader(language)  # skips without a toolchain
    unsafe = MultiPLEGrader(EvaluateConfig(sandbox="unsafe"), BY_NAME[language])
    assert unsafe.grade(ANY, [program])[0].base == "pass"


@pytest.mark.parametrize("name", EACH_LANGUAGE)
def test_a_program_that_ends_itself_has_not_passed(name: str) -> None:
    """An exit status of 0 before the tests have finished is not a pass."""
    program = BY_NAME[name].canary.program.replace("{body}", EXITS[name])
    if name == "go":
        program = program.replace("import (\n", 'import (\n    "fmt"\n    "os"\n') + (
            "\nfunc exit() int {\n    os.Exit(0)\n    return 0\n}\n")
    verdict = _graded(name, program)
    assert verdict.base == "fail" and "does not compile" not in verdict.detail, verdict


def _graded(language: str, program: str) -> Verdict:
    return grader(language).grade(ANY, [program], alone=True)[0]
