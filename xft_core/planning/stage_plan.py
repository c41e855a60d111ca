"""What a plan is made of: the stages with their memory, disk and work, how much data there is, and a machine's rates."""

from dataclasses import dataclass

from xft_core.planning import memory
from xft_core.planning.machine import Machine
from xft_core.planning.memory import Memory


@dataclass(frozen=True)
class DataSize:
    """Training rows, held-out rows, and tokens of a row on average. Of a sample, where there is one: packed sequences for
    each row (None: as if they filled up), and tokens of the longest row of a micro batch, to which the others are padded."""

    train_rows: int
    held_out_rows: int
    tokens_per_row: float
    sequences_per_row: float | None = None
    padded_row: float | None = None


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second: floating-point operations, bytes moved in memory, bytes written to disk.

    ``accelerated``: the first two are of one accelerator, and every process has its own. ``moe_flops``: operations of a
    Mixture-of-Experts, None: as many. ``token``, ``moe_token``: seconds of one token of a batch of answers, 0 where they are
    not known. ``start``: seconds until a stage has its libraries. ``busy``: how much slower all this was than on the same
    machine with nothing else to do.
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
    """One stage. ``kept`` and ``scratch``: bytes on disk afterwards, and more while it runs. ``flops`` (arithmetic) and
    ``memory_read`` (bytes of weights) are None where they depend on data that is not known; ``written``: bytes to disk.
    ``memory`` is that of one process, of ``processes`` on each of ``nodes`` machines; all else is of all of them. ``tokens``:
    how often a batch of answers is lengthened by one; ``moe``: the model at work is the Mixture-of-Experts."""

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
        """What times of alike stages are in proportion to: operations, 1 where there are none, None where not known."""
        return None if self.flops is None else self.flops or 1.0

    def certain(self, machine: Machine) -> float:
        """Bytes of what is certain, in the memory that processes have to themselves or share."""
        return self.memory.certain * self._sharing(machine)

    def peak(self, machine: Machine) -> float:
        """Bytes at the peak, likewise, with the processes themselves."""
        return (self.memory.total + memory.PROCESS) * self._sharing(machine)

    def _sharing(self, machine: Machine) -> int:
        return self.processes if machine.device_memory is None else 1

    def seconds(self, rates: Rates) -> float | None:
        """Time at these rates, None where it cannot be known: the start, the slowest of arithmetic, reading weights and
        lengthening answers, and writing."""
        if self.flops is None or self.memory_read is None:
            return None
        workers = self.nodes * (self.processes if rates.accelerated else 1)
        flops = rates.moe_flops if self.moe and rates.moe_flops else rates.flops
        answers = self.tokens * (rates.moe_token if self.moe else rates.token)
        work = max(self.flops / flops, self.memory_read / rates.bandwidth, answers)
        return rates.start + work / workers + self.written / rates.disk
