"""Retraining requests: the queue with its leases and state machine, what runs took, budgets and history.

`budgets` and `history` are pure; only `queue` writes requests.
"""
