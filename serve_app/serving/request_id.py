"""What a request id may look like: it is the caller's, and it stands in every log line."""

import re

_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")


def is_sane(request_id: str) -> bool:
    """Whether an id that came with a request is kept; any other text is none of ours to log."""
    return _SANE.fullmatch(request_id) is not None
