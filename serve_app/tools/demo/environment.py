"""The environment that libraries find. Set before they are imported, for they read some of it then."""

import os

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; unset, each worker warns of it
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' own, too
}
# They point to clusters of others or require keys; the demo uses a service of its own.
_OTHERS = (
    *("RAY_ADDRESS", "RAY_NAMESPACE"),
    *("CAMERA_EDIT_API_KEYS", "CAMERA_EDIT_API_KEYS_FILE"),
    *("CAMERA_EDIT_OPERATOR_KEYS", "CAMERA_EDIT_OPERATOR_KEYS_FILE"),
)


def prepare_environment() -> None:
    """Keep Ray and transformers quiet, and Ray to this machine, in this process and those that it starts.

    What the user has set for the former stays.
    """
    for name in _OTHERS:
        os.environ.pop(name, None)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
