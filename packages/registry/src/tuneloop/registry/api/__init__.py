"""The control plane: the registry's verbs over HTTP, with tokens, roles and an OpenAPI document.

Only `tuneloop api` imports this package; it brings FastAPI and uvicorn, which nothing else of the registry needs.
"""
