"""The errors a person sees. Each message says what is wrong, the value, where, and what to do about it.

Everything here is the user's or the machine's doing and is shown without a stack trace. A programmer's mistake is
an ``assert`` or a plain ``ValueError`` instead.
"""


class XftError(Exception):
    """A failure with a message for people.

    ``may_pass`` tells an orchestrator whether the same work, started again unchanged, can succeed.
    """

    may_pass = False


class RecipeError(XftError):
    """A recipe or stage configuration that cannot be meant."""


class DataError(XftError):
    """Instruction data or a benchmark file that cannot be used."""


class CheckpointError(XftError):
    """A model directory that is missing, truncated, of an unknown family or otherwise unusable."""


class HubUnavailable(XftError):
    """The Hub did not answer. It may, the next time."""

    may_pass = True


class ArtifactError(XftError):
    """A stage's output that is not whole, or a place where it cannot be put."""


class SandboxError(XftError):
    """Grading cannot be contained on this machine."""


class DiskFullError(XftError):
    """No space left while writing. What was finished is kept; the same command goes on from there."""


class StageInterrupted(XftError):
    """A stage's process ended from outside: a kill, a lost machine, too little memory. Starting again resumes it."""

    may_pass = True


def explained(error: Exception, stage: str) -> XftError | None:
    """A library's error that is the machine's doing in words for people; None for a fault of the program."""
    if type(error).__name__ != "OutOfMemoryError":  # torch's own, not imported here
        return None
    return XftError(
        f"{stage}: the accelerator's memory is too small: {str(error).splitlines()[0]} Lower micro_batch_size (or "
        "generate.batch_size), or turn on sft.gradient_checkpointing.")
