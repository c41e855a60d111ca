"""Python programs graded by the tests of their own file: the forms of EvoEval, BigCodeBench and LiveCodeBench."""
