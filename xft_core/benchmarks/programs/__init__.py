"""Python programs, graded by the tests in the benchmark's file: the forms of EvoEval, BigCodeBench and LiveCodeBench."""
