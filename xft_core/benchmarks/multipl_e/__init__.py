"""MultiPL-E: HumanEval in other programming languages, each graded by its own toolchain."""
