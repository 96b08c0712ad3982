"""What is trained of a base: an adapter on it, or its own weights; and loading either."""
