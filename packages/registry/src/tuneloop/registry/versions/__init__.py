"""Versions: models as MLflow keeps them, the digests and signatures of their files, and where each came from.

Only `store` and its parts import MLflow, which costs about 2 s; `artifacts` and `deadline` are for everybody.
"""
