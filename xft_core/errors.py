"""The errors a person sees. Each message says what is wrong, the value, where, and what to do about it.

Everything here is the user's or the machine's doing and is shown without a stack trace. A programmer's mistake is
an ``assert`` or a plain ``ValueError`` instead.
"""

from pydantic import ValidationError


class XftError(Exception):
    """A failure with a message for people.

    ``may_pass`` tells an orchestrator whether the same work, started again unchanged, can succeed.
    """

    may_pass = False


class RecipeError(XftError):
    """An invalid recipe or stage configuration."""


class DataError(XftError):
    """Instruction data or a benchmark file that cannot be used."""


class CheckpointError(XftError):
    """A model directory that is missing, truncated, of an unknown family or otherwise unusable."""


class HubUnavailable(XftError):
    """The Hub did not answer. It may, the next time."""

    may_pass = True


class NotReady(XftError):
    """Several things that a run needs are not there; the message has a line for each."""


class ArtifactError(XftError):
    """A stage's output that is not whole, or a place where it cannot be put."""


class SandboxError(XftError):
    """Grading cannot be contained on this machine."""


class DiskFullError(XftError):
    """No space left while writing. What was finished is kept; the same command continues from there."""


class OutOfMemory(XftError):
    """The memory of the machine or of its accelerator is too small for a stage as it is configured."""


class StageInterrupted(XftError):
    """A stage's process ended from outside: a kill, a lost machine, too little memory. Starting again resumes it."""

    may_pass = True


class StageKilled(StageInterrupted):
    """A stage's process got SIGKILL, mostly for want of memory. Once more is worth a try, unchanged; twice is not."""


def first_line(error: BaseException, longest: int = 300) -> str:
    """What a person needs of an error: its first line, or its class if it says nothing; of pydantic's, the field and the
    message."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")[:longest]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]
