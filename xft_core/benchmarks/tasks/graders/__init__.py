"""The graders that ship. Each module is read as text and runs in a sandbox, alone: none may import anything of this package.

A grader has a function ``judge(problem, output)``, and may have a function ``execute(problem, answer)``:

execute   runs what the model wrote. ``problem``: the row without its response and without the task's ``hidden`` fields.
          What it returns is made JSON and is the ``output``; an exception is a failure of the answer
judge     in another sandbox, which never runs what the model wrote, reaches the verdict. ``problem``: the whole row;
          ``output``: what ``execute`` returned, or the answer's text where there is no ``execute``. It returns
          {"base": bool, "plus": bool, "score": float or None, "detail": text}; all but base may be left out
"""
