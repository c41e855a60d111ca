from tests.flows.conftest import RECIPE, REPOSITORY  # noqa: F401, I001  (first: it decides where everything is kept)

from tests.tasks.object_store.proxy import s3, s3_server  # noqa: F401  (fixtures)
