"""The modules that grade programs. Like the graders of tasks (see benchmarks/tasks/graders/), each is read as text and runs
alone in a sandbox."""
