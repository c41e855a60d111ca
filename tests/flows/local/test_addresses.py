"""The addresses where `xft ui` listens and those that browsers use for it."""

from pathlib import Path

import pytest

from flows.local.addresses import PUBLIC_FILE, public_address, shown_pages
from flows.local.ui import _check_free, _public
from xft_core.errors import XftError


@pytest.mark.parametrize(("host", "given", "expected"), [
    ("127.0.0.1", None, None), ("localhost", None, None), ("192.0.2.7", None, "http://192.0.2.7:4200"),
    ("0.0.0.0", "http://Machine.example:4200/", "http://machine.example:4200"),
    ("127.0.0.1", "https://xft.example", "https://xft.example")])
def test_what_browsers_elsewhere_call_it(host: str, given: str | None, expected: str | None) -> None:
    assert _public(host, 4200, given) == expected


@pytest.mark.parametrize("given", ["machine", "ftp://machine", "http://me:secret@machine", "http://machine/path"])
def test_an_address_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(XftError, match="--public-address"):
        _public("127.0.0.1", 4200, given)


def test_every_address_needs_a_name() -> None:
    with pytest.raises(XftError, match=r"--host 0\.0\.0\.0 is every address of this machine"):
        _public("0.0.0.0", 4200, None)


def test_another_machines_address_cannot_be_listened_at() -> None:
    with pytest.raises(XftError, match=r"--host '192\.0\.2\.7' is not an address of this machine"):
        _check_free("Prefect", 0, "192.0.2.7")


def test_shown_addresses(tmp_path: Path) -> None:
    assert public_address(tmp_path) is None
    (tmp_path / PUBLIC_FILE).write_text("https://xft.example")
    assert public_address(tmp_path) == "https://xft.example"
    assert shown_pages("https://xft.example", "https://xft.example/mlflow") == {
        "Prefect": "https://xft.example",
        "MLflow": "https://xft.example/mlflow/#/experiments?workflowType=machine_learning"}
