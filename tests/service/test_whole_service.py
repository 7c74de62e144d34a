"""The whole service is killed in mid-job and started again. Its name makes this file the last one of its service."""

from tests.service.conftest import Host
from tests.service.kill import kill_all
from tests.service.receiver import Receiver
from tests.service.test_nothing_lost import check_all, submit_all


def test_the_whole_service_is_killed(open_host: Host, receiver: Receiver) -> None:
    try:
        ids = submit_all(open_host.service, receiver, "/all-killed/200")
    finally:
        kill_all(open_host.process)
    open_host.start()
    check_all(open_host.service, receiver, "/all-killed/200", ids)
