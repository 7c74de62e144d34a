"""Environment variables for the libraries. Set before the imports, since some are read on import."""

import os

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of a later Ray; while unset, each worker warns
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # also those of transformers
}
# They point to other clusters or require keys; the demo starts a service of its own.
_REMOVED = (
    *("RAY_ADDRESS", "RAY_NAMESPACE"),
    *("CAMERA_EDIT_API_KEYS", "CAMERA_EDIT_API_KEYS_FILE"),
    *("CAMERA_EDIT_OPERATOR_KEYS", "CAMERA_EDIT_OPERATOR_KEYS_FILE"),
)


def prepare_environment() -> None:
    """Silence Ray and transformers, and keep Ray on this machine, in this process and its children.

    Variables of the former kind that the user has set stay.
    """
    for name in _REMOVED:
        os.environ.pop(name, None)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
