"""Outbound HTTP: which URLs the service may fetch or call, and the client that does so."""
