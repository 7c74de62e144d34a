"""These tests need a CUDA device; without one they are skipped, in CI too."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
    for item in items:
        if "/gpu/" in str(item.path):
            item.add_marker(no_gpu)
