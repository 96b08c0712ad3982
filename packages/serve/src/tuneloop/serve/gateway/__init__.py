"""tuneloop.serve.gateway: the data plane, an OpenAI API in front of the engines.

auth → limits → assign → pick a ready engine → stream through → record. Nothing on that path reads the database,
MLflow or a disk.
"""
