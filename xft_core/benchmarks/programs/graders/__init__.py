"""What grades programs. As the graders of tasks (see benchmarks/tasks/graders/), each module is read as text and runs in a
sandbox, alone."""
