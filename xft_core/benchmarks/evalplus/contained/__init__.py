"""What grades samples inside sandboxes: candidate.py runs one sample, judge.py the reference and the comparison.

A sample's process holds its own program and the input it is called with, nothing else: no expected output, no reference
solution, no other sample. It answers with what it returned, in a form that cannot make the judge run anything. So a
program may lie about its own outputs, and then has to guess the right ones.

These modules import nothing outside this package but the standard library, evalplus (by file) and numpy where needed.
"""
