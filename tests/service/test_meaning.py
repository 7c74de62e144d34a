"""With the shipped tiny weights and the real service, each edit does what it says."""

from collections.abc import Callable

import pytest

from tests.meaning.checks import CHECKS, RunJob
from tests.service.conftest import Service


@pytest.mark.parametrize("check", CHECKS)
def test_edits_do_what_they_say(toy: Service, check: Callable[[RunJob], None]) -> None:
    check(toy.run)
