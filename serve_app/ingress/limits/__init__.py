"""Limits of what requests and responses take up: in number, in bytes and in time."""
