"""tuneloop.cli: the front door. It finds each package's verbs by entry point and knows none of them by import."""
