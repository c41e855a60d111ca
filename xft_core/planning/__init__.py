"""Estimate the memory, disk and time of every stage before a recipe runs, from the model's config.json, without torch."""
