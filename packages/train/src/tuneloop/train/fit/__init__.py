"""Fitting: one trainer for each objective, and what they share (arguments, progress, checkpoints)."""
