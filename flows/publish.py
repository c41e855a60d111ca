"""Publish a registered version to the Hub, an S3 address or a directory."""

from prefect import flow
from prefect.runtime import deployment

from tasks.publishing.release import Licences, destinations_of, release, token_in_block


@flow(name="publish", persist_result=False, flow_run_name="publish-{model}")
def publish(
    model: str = "models:/demo@champion",
    hub: str = "",
    public: bool = False,
    token_block: str = "",
    s3: str = "",
    directory: str = "",
    licence: str = "",
    data_licence: str = "",
) -> dict[str, str]:
    """Send a registered model to every given destination, fetch it from there, and check that it is the same model. Without
    a destination it goes to published/NAME-VERSION in XFT_HOME.

    An interrupted run continues where it stopped: files that have arrived are not sent again.

    Args:
        model: The version: models:/NAME@champion, or models:/NAME/3.
        hub: Repository on the Hub, owner/name. Empty: none.
        public: Make the repository public. Off: it is private. An existing repository must already have this setting.
        token_block: Name of a Secret block that holds the Hub token. Empty: HF_TOKEN of the worker.
        s3: S3 address, s3://bucket/prefix. Empty: none.
        directory: Directory to create on the worker, as an absolute path (/srv/models/demo-3). Empty: none.
        licence: The model's licence for its card, by the Hub's name for it, for example apache-2.0.
        data_licence: Licence of the instruction data for the card, in words.
    """
    destinations = destinations_of(hub, public, token_in_block(token_block), s3, directory, deployment.id is not None)
    found: dict[str, str] = release(model, destinations, Licences(licence, data_licence))
    return found
