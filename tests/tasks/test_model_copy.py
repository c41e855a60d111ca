import logging
import threading
from pathlib import Path

import pytest

from tasks.model_copy import copy_model
from xft_core.demo import DEMO_DIR
from xft_core.errors import XftError
from xft_core.files.digests import directory_digest

logger = logging.getLogger("tests.model_copy")


def test_a_copy_takes_the_place_of_the_last_and_of_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "served"
    for _ in range(2):
        assert copy_model("demo:model", target, threading.Event(), logger) == target
        assert directory_digest(target) == directory_digest(DEMO_DIR / "model")
        (target / "README.md").write_text("of the last one")
    assert {path.name for path in tmp_path.iterdir()} <= {"served", "served.lock"}
    (tmp_path / "mine").mkdir()
    with pytest.raises(XftError, match="is not a model: it is not replaced"):
        copy_model("demo:model", tmp_path / "mine", threading.Event(), logger)
