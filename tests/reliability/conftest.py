from tests.flows.conftest import RECIPE, REPOSITORY  # noqa: F401, I001  (first: it decides where all files are kept)

from tests.tasks.object_store.proxy import s3, s3_server  # noqa: F401  (fixtures)
