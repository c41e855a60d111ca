"""Check what a stage needs on this machine and from the Hub, without doing any of the stage's work.

Each check raises the XftError that the stage itself would raise. StageConfig.preconditions lists a stage's checks.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from xft_core.benchmarks.find import find_benchmark
from xft_core.errors import CheckpointError, DataError, HubUnavailable, NotReady, RecipeError, XftError
from xft_core.files.data_files import find_data_files
from xft_core.files.locate import (
    HUB_SECONDS,
    ask_for_data_set,
    find_model,
    hub_error,
    hub_is_offline,
    is_hub_model,
    local_path,
)
from xft_core.recipe.sections import EvaluateConfig

NOT_YET = "/"  # placeholder for an earlier stage's output, in a configuration that is only checked

# Checks by the name of what they look for, so that a need of several stages is checked once.
Preconditions = Mapping[str, Callable[[], object]]


def unmet(preconditions: Preconditions) -> list[XftError]:
    """Return the errors of the failing checks, in order. A Hub that does not answer is no error: it may answer later."""
    errors: dict[str, XftError] = {}
    for check in preconditions.values():
        try:
            check()
        except HubUnavailable:
            continue
        except XftError as error:
            errors.setdefault(str(error), error)
    return list(errors.values())


def raise_if_unmet(preconditions: Preconditions) -> None:
    """Raise the error of the failing check, or NotReady with all errors if several checks fail."""
    errors = unmet(preconditions)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise NotReady(listed(errors))


def listed(errors: list[XftError]) -> str:
    """Join errors into one message."""
    if len(errors) == 1:
        return str(errors[0])
    return "\n".join([f"{len(errors)} things that a run needs are missing:", *(f"- {error}" for error in errors)])


def check_model(name: str) -> None:
    """Check that the model exists here or can be fetched from the Hub. Raises CheckpointError, HubUnavailable."""
    if not is_hub_model(name):
        find_model(name)
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    repository, _, revision = name.partition("@")
    if isinstance(try_to_load_from_cache(repository, "config.json", revision=revision or None), str):
        return
    try:  # request a file: the Hub describes a gated model even to users who may not download it
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision or None), timeout=HUB_SECONDS)
    except Exception as error:
        raise hub_error(repository, error, CheckpointError) from None


def check_gguf() -> None:
    """Check that the package that reads and writes GGUF files is installed. Raises RecipeError."""
    if find_spec("gguf") is None:
        raise RecipeError(
            "Writing GGUF files needs the package gguf, which is not installed: pip install 'xft-pipeline[gguf]'.")


def check_data(name: str, is_file: bool, split: str = "train") -> None:
    """Check that the instruction data exists here, with a (first) file that begins as its name implies, or that the Hub knows
    it. Raises DataError, HubUnavailable."""
    if is_file:
        from xft_core.data.sources import check_begins

        check_begins(find_data_files(name, split)[0])
        return
    if hub_is_offline():
        return  # reading it shows whether it is in the cache
    ask_for_data_set(name)


def grading_versions(benchmark: str, config: EvaluateConfig) -> dict[str, str | None]:
    """Return the versions of the benchmark's grading toolchain on this machine, see Kind.versions. Raises DataError without the
    benchmark, SandboxError without its requirements."""
    from xft_core.benchmarks.registry import kind_of

    path = find_benchmark(benchmark)
    return kind_of(path).versions(path, config)


def check_sandbox(benchmark: str, config: EvaluateConfig) -> None:
    """Check that the sandbox works, unless the benchmark needs none or is skipped here because its toolchain is missing. Raises
    SandboxError."""
    from xft_core.benchmarks.registry import kind_of

    try:
        skipped = not kind_of(find_benchmark(benchmark)).runs_programs or None in grading_versions(benchmark, config).values()
    except XftError:  # another check reports it
        skipped = False
    if not skipped:
        _open_sandbox(config.sandbox)


def check_is_graded(benchmark: str) -> None:
    """Check that the benchmark's grading toolchain is on this machine, so that it is not skipped. Raises DataError."""
    try:
        versions = grading_versions(benchmark, EvaluateConfig())
    except XftError:  # another check reports it
        return
    if None in versions.values():
        raise DataError(
            f"dpo.benchmark is {benchmark!r}, which would be skipped: its toolchain is not on this machine, so no answer could "
            "pass. Install the toolchain, or choose another benchmark.")


def check_directory(field: str, directory: Path) -> None:
    """Check that the directory in a field exists. Raises DataError."""
    if not local_path(str(directory)).is_dir():
        raise DataError(f"{field}: there is no directory {str(directory)!r}.")


@lru_cache
def _open_sandbox(mode: str) -> None:
    from xft_core.sandbox.bubblewrap import open_sandbox

    if mode == "bubblewrap":
        open_sandbox("bubblewrap")
