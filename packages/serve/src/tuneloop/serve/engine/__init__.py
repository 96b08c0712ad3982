"""tuneloop.serve.engine: one agent owns one vLLM and keeps its adapters as the routes want them."""
