"""Benchmarks in EvalPlus form: HumanEval(+), MBPP(+), and your own benchmarks in the same schema."""
