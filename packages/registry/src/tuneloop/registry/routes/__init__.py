"""Routes: which versions get which share of a model's keys.

`assignment` is the pure function that gateways answer with, `store` keeps the revisions, `promotion` changes who
serves, after `staging` has brought a version onto the engines.
"""
