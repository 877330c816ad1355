"""Tables of bad input, by where it comes in; `test_bad_input.py` runs them.

A row is a name, how it is made, and what its error must say (a regular
expression): what was given, and the remedy.
"""
