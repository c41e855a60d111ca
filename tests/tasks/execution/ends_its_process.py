"""A module that ends any process that imports it."""

import os

os._exit(1)
