"""The parts of `benchmarks/experiment_validity.py`."""
