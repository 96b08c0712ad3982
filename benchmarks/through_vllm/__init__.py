"""A real vLLM behind the product's own agent and gateway, and a client that takes down when each token came."""
