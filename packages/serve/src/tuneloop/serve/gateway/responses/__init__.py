"""OpenAI's Responses API at the gateway: what its requests say, how its answers pass on, how they are masked."""
