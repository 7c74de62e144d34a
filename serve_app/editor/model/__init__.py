"""The edit model and its parts, with nothing about queues or threads."""
