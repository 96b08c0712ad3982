"""tuneloop.train."""
