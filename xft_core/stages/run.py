"""How any stage is run, and how its key is computed. Without torch.

    stage key = sha256(stage, stage version, settings, digests of the inputs)

``settings`` is the part of a configuration that changes the result; paths never count, contents do. Raise a stage's
``version`` when a code change alters its output: all its earlier artifacts are then rebuilt.
"""

import importlib
import logging
import shutil
import time
from dataclasses import dataclass

from xft_core.files.digests import digest_of
from xft_core.files.disk import disk_full_is_an_error, locked
from xft_core.recipe.steps import what_to_change
from xft_core.runtime.out_of_memory import out_of_memory_is_an_error
from xft_core.runtime.process import imports
from xft_core.stages.base import StageConfig
from xft_core.stages.torchrun import run_in_processes
from xft_core.store.artifacts import check_output_is_free, find, publish
from xft_core.store.manifest import Manifest
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)




@dataclass(frozen=True)
class StageResult:
    """The manifest of a stage's artifact, and whether the artifact already existed."""

    manifest: Manifest
    reused: bool


def stage_key(config: StageConfig, input_digests: dict[str, str] | None = None) -> str:
    """Return the key (sha256, hex) of a configuration. Reads and hashes the inputs unless their digests are given."""
    digests = config.input_digests() if input_digests is None else input_digests
    return digest_of({
        "stage": config.stage, "version": config.version, "settings": config.settings(), "inputs": digests})


def run_stage(config: StageConfig) -> StageResult:
    """Create ``config.output``, or reuse it if it exists. Raises XftError. After a kill, the next start resumes the work."""
    digests = config.input_digests()
    key = stage_key(config, digests)
    with (locked(config.output), disk_full_is_an_error(config.output),
          out_of_memory_is_an_error(config.stage, what_to_change(config.stage))):
        found = find(config.output, key)
        if found:
            logger.info("%s: reused %s", config.stage, config.output)
            shutil.rmtree(Workspace(config.output).root, ignore_errors=True)  # left by a kill just after publishing
            return StageResult(found, reused=True)
        check_output_is_free(config.output)
        workspace = Workspace(config.output)
        workspace.keep_only_progress_of(key)
        workspace.prepare()
        started = time.monotonic()
        if config.processes() != (1, 1):
            metrics = run_in_processes(config, workspace)
        else:
            with imports():
                implementation = importlib.import_module(config.implementation)
            metrics = implementation.run(config, workspace).flat()
        manifest = publish(
            workspace, config.output, stage=config.stage, stage_version=config.version, key=key, parents=digests,
            config=config.settings(), metrics=metrics, provenance=config.provenance, seconds=time.monotonic() - started)
    logger.info("%s: done in %.1f s, %s", config.stage, manifest.seconds, config.output)
    return StageResult(manifest, reused=False)
