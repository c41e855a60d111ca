"""The parts of a plan: the stages with their memory, disk and work, the size of the data, and a machine's rates."""

from dataclasses import dataclass

from xft_core.planning import memory
from xft_core.planning.machine import Machine
from xft_core.planning.memory import Memory


@dataclass(frozen=True)
class DataSize:
    """Training rows, held-out rows, and average tokens per row. If there is a sample, also: packed sequences per row (None:
    assume full sequences), and the average length of the longest row of a micro batch, to which the other rows are padded."""

    train_rows: int
    held_out_rows: int
    tokens_per_row: float
    sequences_per_row: float | None = None
    padded_row: float | None = None


@dataclass(frozen=True)
class Rates:
    """A machine's rates per second: floating-point operations, bytes moved in memory, bytes written to disk.

    ``accelerated``: the first two are for one accelerator, and every process has its own. ``moe_flops``: operations per second
    of a Mixture-of-Experts; None: the same. ``token``, ``moe_token``: seconds for one token of a batch of answers, 0 if
    unknown. ``start``: seconds until a stage has loaded its libraries. ``busy``: how many times slower the measurement was
    than on the same machine when idle.
    """

    flops: float
    bandwidth: float
    disk: float
    accelerated: bool = False
    moe_flops: float | None = None
    token: float = 0.0
    moe_token: float = 0.0
    start: float = 0.0
    busy: float = 1.0


@dataclass(frozen=True)
class StagePlan:
    """One stage. ``kept``: bytes on disk afterwards; ``scratch``: additional bytes while it runs. ``flops`` (arithmetic) and
    ``memory_read`` (bytes of weights) are None if they depend on unknown data. ``written``: bytes written to disk. ``memory``
    is for one process, of ``processes`` on each of ``nodes`` machines; all other numbers are for all processes. ``tokens``:
    number of steps that add one token to each answer of a batch; ``moe``: the stage runs the Mixture-of-Experts."""

    role: str
    memory: Memory
    kept: float = 0.0
    scratch: float = 0.0
    flops: float | None = 0.0
    memory_read: float | None = 0.0
    written: float = 0.0
    processes: int = 1
    nodes: int = 1
    tokens: float = 0.0
    moe: bool = False

    @property
    def work(self) -> float | None:
        """The quantity that times of similar stages are proportional to: operations, 1 if there are none, None if unknown."""
        return None if self.flops is None else self.flops or 1.0

    def certain(self, machine: Machine) -> float:
        """Bytes that are certainly needed in one memory, which processes have to themselves or share."""
        return self.memory.certain * self._sharing(machine)

    def peak(self, machine: Machine) -> float:
        """Peak bytes in one memory, including the processes themselves."""
        return (self.memory.total + memory.PROCESS) * self._sharing(machine)

    def _sharing(self, machine: Machine) -> int:
        return self.processes if machine.device_memory is None else 1

    def seconds(self, rates: Rates) -> float | None:
        """Time at these rates: the start, plus the slowest of arithmetic, reading weights and lengthening answers, plus
        writing. None if it cannot be known."""
        if self.flops is None or self.memory_read is None:
            return None
        workers = self.nodes * (self.processes if rates.accelerated else 1)
        flops = rates.moe_flops if self.moe and rates.moe_flops else rates.flops
        answers = self.tokens * (rates.moe_token if self.moe else rates.token)
        work = max(self.flops / flops, self.memory_read / rates.bandwidth, answers)
        return rates.start + work / workers + self.written / rates.disk
