"""Format a plan as a table for users, on a terminal and in Markdown."""

from collections.abc import Mapping

from xft_core.planning.estimate import Estimate, together
from xft_core.planning.machine import Machine
from xft_core.planning.memory import PROCESS
from xft_core.planning.stage_plan import StagePlan
from xft_core.runtime.quantities import duration, size
from xft_core.runtime.terminal import columns

HEADER = ("stage", "memory", "weights", "gradients", "optimizer", "working", "disk", "while running", "time", "by")

Estimates = Mapping[str, Estimate | None]  # by role; None or a missing stage: unknown


def rows(plan: list[StagePlan], times: Estimates) -> list[tuple[str, ...]]:
    """One row per stage, in the columns of HEADER; memory is that of one process."""
    found = []
    for stage in plan:
        needed = stage.memory
        parts = (needed.weights, needed.gradients, needed.optimizer, needed.working, stage.kept, stage.scratch)
        time = times.get(stage.role)
        found.append((
            stage.role, size(needed.total + PROCESS), *(size(part) if part else "-" for part in parts),
            between(time) if time else "?", time.basis if time else "-"))
    return found


def table(plan: list[StagePlan], times: Estimates) -> str:
    """The plan as a table."""
    return columns(HEADER, rows(plan, times), right=range(1, len(HEADER)))


def summary(plan: list[StagePlan], machine: Machine, times: Estimates) -> list[str]:
    """Lines that compare the largest stage with the machine, and give the total disk and time of all stages."""
    largest = max(plan, key=lambda stage: stage.peak(machine))
    disk = sum(stage.kept for stage in plan) + max(stage.scratch for stage in plan)
    kind = "memory" if machine.device_memory is None else "accelerator memory"
    lines = [
        f"{kind:12} {size(largest.peak(machine))} at most ({largest.role}); this machine has "
        f"{size(machine.for_models)}",
        f"{'disk':12} {size(disk)} for all, {size(machine.disk)} free"]
    sharing = [stage for stage in plan if stage.processes * stage.nodes > 1]
    if sharing:
        number, nodes = sharing[0].processes, sharing[0].nodes
        of_all = f"{number} on each of {nodes} machines" if nodes > 1 else str(number)
        share = "each has its own accelerator" if machine.device_memory else "they share the memory"
        lines.append(f"{'processes':12} {of_all} in {', '.join(stage.role for stage in sharing)}: the table shows the memory "
                     f"of one; {share}")
    of_stages = [times.get(stage.role) for stage in plan]
    if (known := together(of_stages)) is not None:
        more = ", plus the stages with ?" if None in of_stages else ""
        lines.append(f"{'time':12} {between(known)} for all, one after the other{more}")
    return lines


def between(time: Estimate) -> str:
    """Format the range, with the unit only once if both ends have the same."""
    low, high = duration(time.low), duration(time.high)
    if low == high:
        return high
    if low.partition(" ")[2] == high.partition(" ")[2]:
        return f"{low.partition(' ')[0]} to {high}"
    return f"{low} to {high}"
