"""A tuned mixture and prepared rows for all mixing tests."""

from pathlib import Path

import pytest

from tests.xft_core.mixing.models import prepared, tuned


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create dense, moe and data, with 8 reserved rows."""
    directory = tmp_path_factory.mktemp("mixing")
    tuned(directory)
    prepared(directory, reserved_rows=8)
    return directory
