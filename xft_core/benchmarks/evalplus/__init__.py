"""Benchmarks in EvalPlus form: HumanEval(+), MBPP(+), and your own in the same schema."""
