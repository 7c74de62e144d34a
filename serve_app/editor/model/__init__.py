"""The edit model and its parts. Knows nothing of queues or threads."""
