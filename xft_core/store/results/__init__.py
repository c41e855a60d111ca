"""What every stage measures and which JSON files it writes, as types: one module for each stage.

The stage that measures builds one of these models, everyone else reads one: a name that does not exist is an error of the
type checker, not a None at run time. Every number says its unit in brackets at the end of its description.
"""
