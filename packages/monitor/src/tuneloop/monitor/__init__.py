"""tuneloop.monitor: windows → signals → detectors with a false-alarm budget → episodes → retraining requests.

Reads the registry and probes engines; never stands on a request's path. Carries no training stack.
"""
