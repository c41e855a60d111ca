"""A plan as a table for people, on a terminal and in Markdown."""

from xft_core.planning.machine import Machine
from xft_core.planning.memory import PROCESS
from xft_core.planning.plan import Rates, StagePlan
from xft_core.quantities import duration, size

HEADER = ("stage", "memory", "weights", "gradients", "optimizer", "working", "disk", "while running", "time")


def rows(plan: list[StagePlan], rates: Rates | None) -> list[tuple[str, ...]]:
    """One line for each stage, in the columns of HEADER; memory is that of one process."""
    found = []
    for stage in plan:
        needed = stage.memory
        parts = (needed.weights, needed.gradients, needed.optimizer, needed.working, stage.kept, stage.scratch)
        seconds = stage.seconds(rates) if rates else None
        found.append((
            stage.role, size(needed.total + PROCESS), *(size(part) if part else "-" for part in parts),
            "?" if seconds is None else duration(seconds)))
    return found


def table(plan: list[StagePlan], rates: Rates | None) -> str:
    """The plan in columns."""
    lines = [HEADER, *rows(plan, rates)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines)


def summary(plan: list[StagePlan], machine: Machine, rates: Rates | None) -> list[str]:
    """What the machine has, the largest stage beside it, and the time of all stages."""
    largest = max(plan, key=lambda stage: stage.peak(machine))
    disk = sum(stage.kept for stage in plan) + max(stage.scratch for stage in plan)
    kind = "memory" if machine.device_memory is None else "accelerator memory"
    lines = [
        f"{kind:12} {size(largest.peak(machine))} at most ({largest.role}), this machine has "
        f"{size(machine.for_models)}",
        f"{'disk':12} {size(disk)} for all, {size(machine.disk)} free"]
    together = [stage for stage in plan if stage.processes * stage.nodes > 1]
    if together:
        number, nodes = together[0].processes, together[0].nodes
        of_all = f"{number} on each of {nodes} machines" if nodes > 1 else str(number)
        share = "each has its own accelerator" if machine.device_memory else "they share the memory"
        lines.append(f"{'processes':12} {of_all} in {', '.join(stage.role for stage in together)}: the table has the memory of "
                     f"one, {share}")
    if rates:
        times = [stage.seconds(rates) for stage in plan]
        known = sum(time for time in times if time is not None)
        more = ", and the stages with ?" if None in times else ""
        lines.append(
            f"{'time':12} {duration(known)}{more}, at {rates.flops / 1e12:.3g} TFLOP/s, {rates.bandwidth / 1e9:.3g} GB/s of "
            f"memory, {rates.disk / 1e9:.3g} GB/s to disk")
    return lines
