"""The arithmetic of the measured overhead."""

import pytest

from tests.benchmarks.overhead import Cost, Pillow, png_sum, too_much

PNG, JPEG = Pillow(0.03, 0.02, 0.1, 0.01), Pillow(0.01, 0.02, 0.01, 0.0)


def test_what_pillow_does_is_not_overhead() -> None:
    cheap = Cost("runpod", "png", {"editor": 0.11, "ingress": 0.05, "jobs": 0.05}, PNG)
    dear = Cost("openai", "jpeg", {"editor": 0.02, "ingress": 0.11}, JPEG)
    assert cheap.beyond == pytest.approx(0.05)
    assert png_sum([cheap, dear]) == pytest.approx(0.16)
    assert too_much([cheap, dear]) == ["openai jpeg"]
