"""Verdicts on programs in one language. The language's own toolchain compiles and runs each program in its own sandbox.

A shell script does this: it reports on standard error that the sandbox has started and that the program was compiled, and
then turns into the program. So nothing runs next to the program that it could kill or deceive.
"""

import hashlib
import re
import shlex
import signal
import subprocess
from dataclasses import replace
from typing import Any

from xft_core.benchmarks.benchmark import NOT_GRADED, Grader, Status, Verdict
from xft_core.benchmarks.multipl_e.languages import Language
from xft_core.benchmarks.multipl_e.problems import Problem
from xft_core.benchmarks.multipl_e.toolchains import find_toolchain
from xft_core.errors import SandboxError
from xft_core.files.temporary import SHOWN_TO_SANDBOX, TemporaryDirectory, temporary_directory
from xft_core.recipe.sections import EvaluateConfig
from xft_core.sandbox.bubblewrap import ENVIRONMENT, Finished, Resources, open_sandbox

# Limits of processor time, and three times as much by the clock: other work on the machine changes no verdict.
# MultiPL-E's own limit is 15 s for a program, and 30 s for one that is compiled and run in one go.
COMPILE_SECONDS, RUN_SECONDS, CLOCK_FACTOR = 30, 15, 3
MAX_PROCESSES, MAX_OPEN_FILES, WORK_BYTES, FILE_BYTES = 192, 1024, 512 * 2**20, 128 * 2**20
PROCESSOR_TIME_IS_UP = (128 + signal.SIGXCPU, -signal.SIGXCPU)
DETAIL_CHARACTERS = 800
CACHE_SECONDS = 600  # from 1.20 on, Go comes without compiled libraries
NOISE = re.compile(
    r"^(?:Finished in |.*tests/s,|Loaded suite|Started$|-+$|=+$|Node\.js v| +at .*node:internal).*\n?", re.MULTILINE)
UNSTEADY = re.compile(r"\(\d+\.\d+s\)|\b\d+\.\d+ ?s(?:econds)?\b|(?<=thread 'main' )\(\d+\) ")


class MultiPLEGrader(Grader[Problem]):
    """Grades programs in one language. Raises NotGradable without its toolchain, SandboxError if a canary gets a wrong
    verdict."""

    def __init__(self, config: EvaluateConfig, language: Language) -> None:
        self._toolchain = find_toolchain(language)
        self._memory_mb = config.memory_limit_mb
        self._cache = self._filled_cache() if language.cache else None
        mounts = [*self._toolchain.mounts, *([self._cache.path] if self._cache else [])]
        self._sandbox = open_sandbox(config.sandbox, mounts)
        self._resources = Resources(
            memory_bytes=config.memory_limit_mb * 2**20 if language.limit_memory else None,
            resident_bytes=config.memory_limit_mb * 2**20, file_bytes=FILE_BYTES,
            processes=MAX_PROCESSES, open_files=MAX_OPEN_FILES, work_bytes=WORK_BYTES)
        self.check()

    def grade(self, problem: Problem, samples: list[str], alone: bool = False) -> list[Verdict]:
        """See Grader. Identical samples run once."""
        verdicts = {sample: self._verdict(sample, alone) for sample in dict.fromkeys(samples)}
        return [verdicts[sample] for sample in samples]

    def facts(self) -> dict[str, Any]:
        """See Grader."""
        return {
            "toolchain": self._toolchain.version, "sandbox": self._sandbox.mode,
            "limits": {"compile_seconds": COMPILE_SECONDS, "run_seconds": RUN_SECONDS, "memory_limit_mb": self._memory_mb}}

    def stop(self) -> None:
        """See Grader."""
        self._sandbox.stop.set()

    def _verdict(self, program: str, alone: bool) -> Verdict:
        language = self._toolchain.language
        # Unknown to the program's author, and the same for the same program.
        token = hashlib.sha256(program.encode(errors="replace")).hexdigest()[:32]
        seconds = RUN_SECONDS + (COMPILE_SECONDS if language.compile else 0)
        done = self._sandbox.run(
            ["/bin/sh", "-c", self._script(token)], seconds * CLOCK_FACTOR,
            files={language.file: with_end(program, language, token)}, resources=self._resources,
            environment=dict(language.environment))
        said = done.stderr.decode(errors="replace").split(f"{token}\n")
        if len(said) == 1 or self._sandbox.stop.is_set():
            return replace(NOT_GRADED, detail="its sandbox did not come up")
        if done.status is None and not alone:
            return replace(NOT_GRADED, detail=(
                f"not done, nor out of processor time, after {seconds * CLOCK_FACTOR} s: the machine may be overloaded"))
        return _judged(done, said, language, token)

    def _script(self, token: str) -> str:
        compile_command, run = (
            shlex.join(self._toolchain.command(words, self._memory_mb))
            for words in (self._toolchain.language.compile, self._toolchain.language.run))
        name = self._toolchain.language.cache
        cache = f"cp -r {shlex.quote(str(self._cache.path))} .cache\nexport {name}=$PWD/.cache\n" if self._cache else ""
        return (
            f"echo {token} >&2\n{cache}" + (
                f"(ulimit -S -t {COMPILE_SECONDS}; exec {compile_command}) >&2 || exit $?\n" if compile_command else "")
            + f"echo {token} >&2\nulimit -S -t {RUN_SECONDS}\nexec {run}\n")

    def _filled_cache(self) -> TemporaryDirectory:
        """A directory with the language's compiled libraries, filled by compiling its canary (our own program)."""
        language = self._toolchain.language
        cache = TemporaryDirectory("cache", SHOWN_TO_SANDBOX)
        cache.path.chmod(0o755)
        with temporary_directory("work") as work:
            program = language.canary.program.replace("{body}", language.canary.right)
            (work / language.file).write_text(program, encoding="utf-8")
            environment = ENVIRONMENT | dict(language.environment) | {language.cache: str(cache.path)}
            subprocess.run(
                self._toolchain.command(language.compile, self._memory_mb), cwd=work, env=environment, check=False,
                stdin=subprocess.DEVNULL, capture_output=True, timeout=CACHE_SECONDS)
        return cache

    def check(self) -> None:
        """See Grader."""
        canary = self._toolchain.language.canary
        for name, body, status in (
            ("right", canary.right, "pass"), ("wrong", canary.wrong, "fail"), ("broken", canary.broken, "fail"),
        ):
            found = self._verdict(canary.program.replace("{body}", body), alone=True)
            if found.base != status:
                language = self._toolchain.language
                raise SandboxError(
                    f"Grading {language.name} does not work on this machine: a {name} program got {found.base!r} "
                    f"({self._toolchain.version}, sandbox {self._sandbox.mode}, memory limit {self._memory_mb} MB): "
                    f"{found.detail or 'no message'}. Is the toolchain complete (Debian packages {language.packages}), "
                    "and is the memory limit high enough?")


def with_end(program: str, language: Language, token: str) -> str:
    """The program, changed to report the end of its tests: a program that exits before that does not pass."""
    if not language.end:
        return program
    end, before, after = language.end.replace("{token}", token), program, ""
    for _ in range(language.braces):
        before, brace, rest = before.rpartition("}")
        after = brace + rest + after
    return f"{before}\n{end}\n{after}"


def _judged(done: Finished, said: list[str], language: Language, token: str) -> Verdict:
    compiled, output = len(said) > 2, done.stdout.decode(errors="replace")
    passed = done.status == 0 and compiled and re.search(language.done.replace("{token}", token), output, re.MULTILINE)
    if passed:
        return Verdict("pass", "pass")
    late = done.status is None or done.status in PROCESSOR_TIME_IS_UP
    status: Status = "timeout" if late else "fail"
    if compiled and done.status == 0:
        reason = "the program ended before its tests were done"
    else:
        limit = f" within {RUN_SECONDS if compiled else COMPILE_SECONDS} s" if late else ""
        reason = "" if compiled and not late else f"it does not {'end' if compiled else 'compile'}{limit}"
    message = _steady("\n".join(said[2 if compiled else 1:]).strip() or output.strip(), token)
    if not reason and not message:
        reason = f"a test failed (exit status {done.status})"
    return Verdict(status, status, ": ".join(filter(None, (reason, message))))


def _steady(message: str, token: str) -> str:
    """The end of a message, without the parts that differ from run to run."""
    message = UNSTEADY.sub("", NOISE.sub("", message.replace(token, ""))).strip()
    return message if len(message) <= DETAIL_CHARACTERS else "…" + message[-DETAIL_CHARACTERS:]
