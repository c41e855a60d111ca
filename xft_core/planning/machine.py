"""The machine's memory, accelerator memory and free disk space, determined without torch because this must be fast."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Bytes of memory (with swap), of one accelerator's memory (None if there is none), and free on the store's disk."""

    memory: float
    device_memory: float | None
    disk: float

    @property
    def for_models(self) -> float:
        """The memory that models are trained in."""
        return self.memory if self.device_memory is None else self.device_memory


def this_machine(store: Path) -> Machine:
    """This machine, with the disk that ``store`` is or will be on."""
    return Machine(_memory(), _device_memory(), _free(store))


def machine_name() -> str:
    """The hardware that determines a machine's speed, to keep the times of different machines apart: processor, usable cores,
    accelerator."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{processor} x {len(os.sched_getaffinity(0))}, {_device('name') or 'no accelerator'}"


def slowdown(more: int = 0, over_seconds: float = 0.0) -> float:
    """How many times longer work takes now than on the same machine when idle, by the load average of about the last
    ``over_seconds``: runnable processes, plus ``more`` that will start, per core; at least 1."""
    one, five, fifteen = os.getloadavg()
    load = one if over_seconds < 180 else five if over_seconds < 600 else fifteen
    return max(1.0, (load + more) / len(os.sched_getaffinity(0)))


def store_size(store: Path) -> float:
    """Bytes of all files below ``store``; 0 if it does not exist."""
    return float(sum(path.stat().st_size for path in store.rglob("*") if path.is_file()))


def _memory() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total = (kilobytes["MemTotal"] + kilobytes["SwapTotal"]) * 1024.0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(total, float(text)) if text != "max" else total


def _device_memory() -> float | None:
    """The largest accelerator's memory, as reported by the driver's tool; None if no accelerator is usable."""
    try:
        return max(float(line) for line in _device("memory.total").split()) * 2**20
    except ValueError:
        return None


def _device(field: str) -> str:
    """The output of the driver's tool, one line per accelerator; empty if no accelerator is usable."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _free(store: Path) -> float:
    place = store.absolute()
    while not place.exists():
        place = place.parent
    return float(shutil.disk_usage(place).free)
