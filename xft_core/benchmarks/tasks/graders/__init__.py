"""The shipped graders. Each module is read as text and runs alone in a sandbox, so it must not import this package.

A grader has a function ``judge(problem, output)``, and may have a function ``execute(problem, answer)``:

execute   runs the model's answer. ``problem``: the row without its response and without the task's ``hidden`` fields.
          Its return value, as JSON, is the ``output``; an exception is a failure of the answer
judge     reaches the verdict, in another sandbox that never runs the answer. ``problem``: the complete row;
          ``output``: the return value of ``execute``, or the answer's text if there is no ``execute``. It returns
          {"base": bool, "plus": bool, "score": float or None, "detail": text}; all except base may be left out
"""
