"""``python -m tests.tasks.execution.script CONFIG TEXT``: run TEXT as ``python -c TEXT CONFIG`` would."""

import sys

text = sys.argv.pop()
exec(compile(text, "<script>", "exec"), {"__name__": "__main__"})
