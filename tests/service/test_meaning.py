"""What the shipped tiny weights draw through the real service: each edit does what it says."""

from collections.abc import Callable

import pytest

from tests.meaning.checks import CHECKS, Ask
from tests.service.conftest import Service


@pytest.mark.parametrize("check", CHECKS)
def test_means(toy: Service, check: Callable[[Ask], None]) -> None:
    check(toy.run)
