"""Requests that come twice with one Idempotency-Key."""

from serve_app.edits.job import RepeatKey
from serve_app.errors import RepeatKeyConflict


def fingerprint_of(repeat_key: RepeatKey | None) -> str:
    """Empty where the job has no repeat key."""
    return repeat_key.fingerprint if repeat_key is not None else ""


def require_same(stored: str, given: str) -> None:
    """Compare the fingerprints of a stored job and of one that may be the same.

    Raises:
        RepeatKeyConflict: they differ.
    """
    if stored != given:
        raise RepeatKeyConflict(
            "This Idempotency-Key came with another request before; send a new one with a new request.",
            "Idempotency-Key",
        )
