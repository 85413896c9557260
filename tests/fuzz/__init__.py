"""Fuzzing: bad arguments, damaged files and wrong command lines, held against the laws of errors.

`make fuzz` runs it at length; tests/test_fuzz.py in short. The laws: no exception but those that docstrings name, each
one sentence that names the argument (in quotes) or the file; nothing that says "completed" holds NaN or infinity; a
damaged file is refused or means what it meant, and reading it executes nothing.
"""
