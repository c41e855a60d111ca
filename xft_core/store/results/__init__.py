"""Types for the measurements and JSON files of every stage, with one module per stage.

A stage creates these models, and all other code reads them, so a wrong name is a type-checking error and not a None at run
time. The description of every number ends with its unit in brackets.
"""
