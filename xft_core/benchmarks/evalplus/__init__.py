"""Benchmarks in EvalPlus form: HumanEval(+), MBPP(+), and one's own in the same schema."""
