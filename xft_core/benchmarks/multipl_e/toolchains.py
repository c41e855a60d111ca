"""The toolchains of this machine: the paths of a language's programs, their version, and what a sandbox must mount."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xft_core.benchmarks.benchmark import NotGradable
from xft_core.benchmarks.multipl_e.languages import Language

PROBE_SECONDS = 30


@dataclass(frozen=True)
class Toolchain:
    """A language's toolchain. ``programs``: path by name; ``mounts``: what they need outside /usr."""

    language: Language
    version: str
    programs: dict[str, str]
    mounts: tuple[Path, ...]

    def command(self, words: tuple[str, ...], memory_mb: int) -> list[str]:
        """A command of the language, with this machine's paths and the memory limit."""
        return [self.programs.get(word, word).replace("{memory_mb}", str(memory_mb)) for word in words]


def find_toolchain(language: Language) -> Toolchain:
    """Find this machine's toolchain and try it out. Raises NotGradable, saying what to install, if there is none."""
    programs = {}
    for name in dict.fromkeys(probe[0] for probe in language.probes):
        path = shutil.which(name)
        if path is None:
            raise _missing(language, f"no {name}")
        programs[name] = _real(name, path)
    for needed in language.needed:
        if not Path(needed).is_file():
            raise _missing(language, f"no {needed}")
    versions = [_output(language, [programs[probe[0]], *probe[1:]]) for probe in language.probes]
    return Toolchain(language, versions[0], programs, tuple(dict.fromkeys(_mounts(language, programs))))


def _missing(language: Language, reason: str) -> NotGradable:
    return NotGradable(f"no toolchain for {language.name}: {reason} (install: Debian packages {language.packages})")


def _real(name: str, path: str) -> str:
    """The program's path, unchanged below /usr, otherwise with links resolved. For rustup's proxy, the real rustc."""
    if name == "rustc":
        sysroot = subprocess.run([path, "--print", "sysroot"], capture_output=True, text=True, timeout=PROBE_SECONDS)
        own = Path(sysroot.stdout.strip()) / "bin" / name
        path = str(own) if sysroot.returncode == 0 and own.is_file() else path
    return path if path.startswith("/usr/") else str(Path(path).resolve())


def _output(language: Language, command: list[str]) -> str:
    """The first line that a probe prints. Raises NotGradable if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _missing(language, str(error)) from None
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        raise _missing(language, lines[0] if lines else f"{command[0]} exits with status {done.returncode}")
    return lines[0].strip() if lines else ""


def _mounts(language: Language, programs: dict[str, str]) -> Iterator[Path]:
    for program in map(Path, programs.values()):
        if not program.resolve().is_relative_to("/usr"):
            yield program.parent.parent if program.parent.name == "bin" else program.parent
    for pattern in language.configuration:
        yield from sorted(Path("/").glob(pattern.removeprefix("/")))
