"""A registered version to where it is used: the Hub, an S3 address, a directory."""

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
    """Send a registered model to every place that is given, fetch it from there, and check that it is the same model. With no
    place given it goes to published/NAME-VERSION in XFT_HOME.

    What was cut short continues where it was: files that are there already are not sent again.

    Args:
        model: The version: models:/NAME@champion, or models:/NAME/3.
        hub: Repository of the Hub, owner/name. Empty: none.
        public: Everybody may see the repository. Off: it is private. One that is there must already be what is asked for.
        token_block: Name of a Secret block with the Hub's token. Empty: HF_TOKEN of the worker.
        s3: S3 address, s3://bucket/prefix. Empty: none.
        directory: Directory to make, on the worker, as a whole path (/srv/models/demo-3). Empty: none.
        licence: Licence of the model as the Hub names it, for its card: apache-2.0, for example.
        data_licence: Licence of the instruction data, in words, for the card.
    """
    destinations = destinations_of(hub, public, token_in_block(token_block), s3, directory, deployment.id is not None)
    found: dict[str, str] = release(model, destinations, Licences(licence, data_licence))
    return found
