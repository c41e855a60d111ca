"""What this machine has: memory, an accelerator's memory, room on disk. Without torch: asking must not take seconds."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Bytes of memory (with swap), of one accelerator's memory (None without), and free on the store's disk."""

    memory: float
    device_memory: float | None
    disk: float

    @property
    def for_models(self) -> float:
        """The memory that models are trained in."""
        return self.memory if self.device_memory is None else self.device_memory


def this_machine(store: Path) -> Machine:
    """The machine as it is, with the disk that ``store`` is or will be on."""
    return Machine(_memory(), _device_memory(), _free(store))


def machine_name() -> str:
    """What decides how fast a machine is, so that times of another are not taken for its own: processor, cores that may be
    used, accelerator."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{processor} x {len(os.sched_getaffinity(0))}, {_device('name') or 'no accelerator'}"


def slowdown(more: int = 0, over_seconds: float = 0.0) -> float:
    """How many times longer work takes now than on the same machine alone, as the load average of about the last
    ``over_seconds`` has it: runnable processes, and ``more`` that are to come, for each core; at least 1."""
    one, five, fifteen = os.getloadavg()
    load = one if over_seconds < 180 else five if over_seconds < 600 else fifteen
    return max(1.0, (load + more) / len(os.sched_getaffinity(0)))


def store_size(store: Path) -> float:
    """Bytes of all files below ``store``; 0 when it is not there."""
    return float(sum(path.stat().st_size for path in store.rglob("*") if path.is_file()))


def _memory() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total = (kilobytes["MemTotal"] + kilobytes["SwapTotal"]) * 1024.0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(total, float(text)) if text != "max" else total


def _device_memory() -> float | None:
    """The largest accelerator's memory, as the driver's own tool tells it; None where there is none to use."""
    try:
        return max(float(line) for line in _device("memory.total").split()) * 2**20
    except ValueError:
        return None


def _device(field: str) -> str:
    """What the driver's tool says of the accelerators, a line for each; empty where there is none to use."""
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
