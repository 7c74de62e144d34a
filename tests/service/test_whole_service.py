"""The whole service is killed in mid-job and started again. Its name makes this file the last one of its service."""

from playwright.sync_api import expect

from tests.pictures import photograph, to_png
from tests.service.conftest import Host
from tests.service.kill import kill_all
from tests.service.receiver import Receiver
from tests.service.test_nothing_lost import check_all, submit_all
from tests.service.visit import DONE_MS, chromium, failed_load, visiting


def test_the_whole_service_is_killed(open_host: Host, receiver: Receiver) -> None:
    with chromium() as browser, visiting(browser, open_host.service) as visit:
        visit.open(key=None)
        visit.drop(to_png(photograph("astronaut", 96, 64)))
        visit.set(width="384", height="384", num_inference_steps="100")
        visit.page.fill("#prompt", "make it night")
        with visit.page.expect_response("**/run") as accepted:
            visit.page.click("#start")
        assert accepted.value.ok
        try:
            ids = submit_all(open_host.service, receiver, "/all-killed/200")
        finally:
            kill_all(open_host.process)
        expect(visit.page.locator("#service")).to_contain_text("Connection lost. Trying again", timeout=DONE_MS)
        open_host.start()
        check_all(open_host.service, receiver, "/all-killed/200", ids)
        visit.done()
        expect(visit.page.locator("#service")).to_be_empty()
        assert [line for line in visit.console if not failed_load("503 (Service Unavailable)").match(line)] == []
        visit.console.clear()
