"""Prompting methods, one file each: ``make(*, max_searches, num_examples)`` gives a `TextAgent`, found by its name."""
