"""Processes of one home, found by their environment: the run's own and those of its stages."""

from pathlib import Path

from xft_core.stages.configs import STAGES

Processes = dict[int, list[str]]
FLOW_WORDS = ("flows.cli", "prefect.engine", "prefect.flow_engine")


def of_home(home: Path) -> Processes:
    """Return the command line of every process that has this XFT_HOME, by process ID."""
    found = {}
    wanted = f"XFT_HOME={home}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                found[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended meanwhile, or belongs to another user
            continue
    return found


def stages(processes: Processes) -> dict[int, str]:
    """Return the stage that each stage process works on."""
    return {pid: words[4] for pid, words in processes.items()
            if words[1:4] == ["-P", "-m", "xft_core"] and words[4] in STAGES}


def flows(processes: Processes) -> list[int]:
    """Return the IDs of the processes in which a flow runs, however it was started."""
    return [pid for pid, words in processes.items() if any(word in words for word in FLOW_WORDS)]
