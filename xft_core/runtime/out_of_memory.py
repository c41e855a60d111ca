"""Turn out-of-memory errors, in any form that libraries raise them, into a message with advice instead of a stack trace."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from xft_core.errors import OutOfMemory
from xft_core.runtime.quantities import size

# The wording of torch for processor memory, of CUDA's libraries, and of the operating system.
WORDS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED", "bad_alloc")


@contextmanager
def out_of_memory_is_an_error(stage: str, what_to_change: str) -> Iterator[None]:
    """Turn a failed allocation, on the processor or an accelerator, into OutOfMemory with the advice ``what_to_change``."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        kind = type(error).__name__
        if not (isinstance(error, MemoryError) or kind == "OutOfMemoryError" or any(word in str(error) for word in WORDS)):
            raise
        where = "the accelerator's memory" if "CUDA" in str(error) or kind == "OutOfMemoryError" else "the memory"
        detail = (str(error).splitlines() or [""])[0].rstrip(".")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        raise OutOfMemory(
            f"{stage}: {where} is too small{': ' + detail if detail else ''}. The process itself used up to "
            f"{size(peak)}. {what_to_change} Finished work is kept.") from error
