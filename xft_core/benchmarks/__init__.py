"""Benchmarks of code: their problems, how a model is asked, and how its answers are graded."""
