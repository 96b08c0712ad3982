"""tuneloop.serve."""
