"""Tasks: folders with rows, a prompt, a grader and splits. Whoever has such a folder has a benchmark, without code here."""
