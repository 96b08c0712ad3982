"""Telling people of alert episodes: what a page says, in whose form, how it gets there, and when it is tried again.

The outbox (`tuneloop.registry.deliveries`) says what is due; what a killed monitor had in memory costs an attempt or a
repetition under the same key, and no delivery.
"""
