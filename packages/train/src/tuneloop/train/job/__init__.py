"""One training run, from a recipe's rows to a registered version; `tuneloop train` and the worker share it.

`begin` says what a run is told and needs no torch; `run` is the run.
"""
