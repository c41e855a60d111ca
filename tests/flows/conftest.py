from tests.tasks import environment  # noqa: F401, I001  (first: it decides where all files are kept)

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from flows.local.embedded_api import use_prefect_api
from tasks.settings import settings
from tests.tasks.tracking.mlflow_server import mlflow_server  # noqa: F401  (fixture)
from tests.tasks.object_store.proxy import s3, s3_server  # noqa: F401  (fixtures)

REPOSITORY = Path(__file__).parents[2]

# The smallest possible full run: one problem, a few tokens, a few steps. SFT writes a checkpoint at every step.
RECIPE = {
    "name": "tiny",
    "data": {"max_rows": 60, "max_length": 64, "held_out_rows": 8, "decontaminate": False},
    "baseline": {"enabled": False},
    "upcycle": {"num_experts": 2, "num_experts_per_tok": 2},
    "sft": {"max_steps": 12, "epochs": 20, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32",
            "packing": False, "checkpoint_steps": 1, "log_steps": 1, "warmup_steps": 0, "learning_rate": 0.001},
    "merge": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32"},
    "generate": {"max_new_tokens": 4, "precision": "fp32"},
    "evaluate": {"max_problems": 1, "sandbox": "unsafe"},
}


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """Serve a real Prefect API over a database of the test session."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    use_prefect_api(settings().home).wait()
    address, secret = (os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"))
    with temporary_settings(updates={PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: secret}):  # Prefect is already imported
        yield address


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny recipe to a file, with some sections changed."""
    def write(**changes: dict[str, object]) -> Path:
        content = RECIPE | {name: RECIPE.get(name, {}) | values for name, values in changes.items()}  # type: ignore
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path
    return write
