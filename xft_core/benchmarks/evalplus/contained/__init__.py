"""The code that grades samples inside sandboxes: candidate.py runs one sample, judge.py the reference and the comparison.

A sample's process holds only its own program and the input it is called with: no expected output, no reference
solution, no other sample. It sends its return value in a form that cannot make the judge run anything. So a program can
lie about its own outputs, but then has to guess the right ones.

Outside this package, these modules import only the standard library, evalplus (by file) and, if needed, numpy.
"""
