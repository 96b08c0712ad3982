"""Rows: where they come from, what they say, whether they are fit to learn from, which tokens are learned."""
