"""Who may do what: API keys of the gateway, tokens of the control plane, and the roles that tokens have."""
