"""Who may go on, and when: limits of keys, their shares among gateways, and the queue before the engines.

Nothing here waits for database or disk on the request path; a key without limits passes by one look at its fields.
"""
