"""Named graph passes, one a file.

A pass takes a model and returns ``(model, changed)``; its docstring says what it requires and what
it ensures. `hoist`, `split_dit` and the cuts divide one graph into several and return those.
"""
