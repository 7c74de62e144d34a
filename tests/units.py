"""Which tests run one after another on the same worker, and which start first.

A unit is a test file, or the files of tests/service/ that share a service, so that each service starts once.
"""

from xdist.scheduler import LoadFileScheduling

SERVICE_FOLDER = "tests/service/"
SHARED = {
    "test_device_faults.py": "on_redis",
    "test_nothing_lost.py": "on_redis",
    "test_rewriter_endpoint.py": "on_redis",
    "test_hostile.py": "narrow",
    "test_mcp_keys.py": "toy",
    "test_meaning.py": "toy",
    "test_openapi.py": "toy",
    "test_playground.py": "toy",
    "test_redeploy.py": "toy",  # changes the adapters, so it is the last file
    "test_overload.py": "narrow",
    "test_privacy.py": "narrow",
    "test_sigterm.py": "narrow",  # ends the service, so it is the last file
    "test_long_transfers.py": "narrow",
    # These start their own processes.
    "test_failed_start.py": "none",
    "test_kill.py": "none",
    "test_newcomer.py": "newcomer",
    "test_no_gpu.py": "none",
}
"""The service that each file uses; a file that is not listed uses `service`."""

ORDER = (
    f"{SERVICE_FOLDER}service",
    "tests/test_lint.py",
    f"{SERVICE_FOLDER}newcomer",
    f"{SERVICE_FOLDER}none",
    "tests/tools/",
    "tests/editor/",
    "tests/tiny/",
    f"{SERVICE_FOLDER}narrow",
    f"{SERVICE_FOLDER}toy",
    f"{SERVICE_FOLDER}on_redis",
)
"""How the units that start first begin, in order. While one worker runs the longest service's tests, the other runs
those that only compute, so that seldom two services share the cores; the many short units come last, so that both
workers end at about the same time."""


def unit_of(node_id: str) -> str:
    file = node_id.partition("::")[0]
    if not file.startswith(SERVICE_FOLDER):
        return file
    return SERVICE_FOLDER + SHARED.get(file.removeprefix(SERVICE_FOLDER), "service")


def rank(node_id: str) -> int:
    """The sort key of a test: its unit's place in ORDER."""
    unit = unit_of(node_id)
    return next((place for place, start in enumerate(ORDER) if unit.startswith(start)), len(ORDER))


class UnitScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Sends a worker the next unit when it has nearly finished the previous one."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
