"""Named graph passes, one a file.

A pass takes a model and returns ``(model, changed)``; its docstring says what it requires and what
it ensures. `split_text` and `cut_at_regions` divide one graph into several and return those.
"""
