"""Tasks: folders with rows, a prompt, a grader and splits. Such a folder is a benchmark and needs no code in this package."""
