"""A version in MLflow's registry, by its address models:/NAME@ALIAS or models:/NAME/VERSION: its files and tags."""

import re
from dataclasses import dataclass
from pathlib import Path

from tasks.tracking.client import client
from xft_core.errors import XftError, first_line

ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class NotRegistered(XftError):
    """There is no such version in the registry."""


@dataclass(frozen=True)
class Version:
    """A registered version. ``source``: where its files are; ``tags``: lineage and measurements, as register wrote them."""

    name: str
    number: int
    source: str
    run_id: str
    tags: dict[str, str]

    @property
    def address(self) -> str:
        """Its address, which does not depend on aliases."""
        return f"models:/{self.name}/{self.number}"


def resolve(address: str) -> Version:
    """Return the version at an address. Raises NotRegistered."""
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise NotRegistered(f"{address[:200]!r} is not a registered version. Give models:/NAME@champion or models:/NAME/3.")
    name, alias, number = parts["name"], parts["alias"], parts["version"]
    try:
        found = client().get_model_version_by_alias(name, alias) if alias else client().get_model_version(name, number)
    except Exception as error:
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise NotRegistered(f"The registry has no {address}: {first_line(error)}") from None
        raise
    return Version(name, int(found.version), str(found.source), str(found.run_id), dict(found.tags))


def download(version: Version, target: Path) -> Path:
    """Download the version's files below ``target``; returns their directory. For versions whose files MLflow keeps."""
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=version.source, dst_path=str(target), tracking_uri=client().tracking_uri))


def note(version: Version, tag: str, value: str) -> None:
    """Set a tag of the version."""
    client().set_model_version_tag(version.name, str(version.number), tag, value)
