"""Telling people of alert episodes: what a page says, in whose form, how it gets there, and when it is tried again.

The outbox (`tuneloop.registry.deliveries`) says what is due; nothing here is kept in memory that a killed monitor would
lose.
"""
