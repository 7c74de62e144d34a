"""What the shipped tiny weights draw through the real service: each edit does what it says."""

from collections.abc import Callable, Iterator

import pytest

from serve_app.config import TINY_FILE
from tests.meaning.checks import CHECKS, Ask
from tests.processes import free_port
from tests.service.conftest import Service, jobs_of, running
from tests.service.receiver import Receiver


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("toy")
    with running(folder, free_port(), jobs_of(folder, receiver), shipped=TINY_FILE) as service:
        yield service


@pytest.mark.parametrize("check", CHECKS)
def test_means(toy: Service, check: Callable[[Ask], None]) -> None:
    check(toy.run)
