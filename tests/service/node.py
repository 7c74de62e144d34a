"""The packages of tests/clients, which Node.js runs: pinned, and installed once for all tests that use them."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

CLIENTS = ROOT / "tests" / "clients"

needs_node = pytest.mark.skipif(
    shutil.which("npm") is None and "CI" not in os.environ, reason="Node.js and npm are not installed"
)


def installed_clients() -> Path:
    """The folder of the clients' tests, its packages installed.

    Test processes take turns: `npm ci` deletes what another one may be using.
    """
    wanted, present = CLIENTS / "package-lock.json", CLIENTS / "node_modules" / ".package-lock.json"
    with wanted.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not present.exists() or present.stat().st_mtime < wanted.stat().st_mtime:
            run(["npm", "ci", "--no-audit", "--no-fund"], CLIENTS)
    return CLIENTS


def run(command: list[str | Path], folder: Path, **environment: str) -> str:
    """A program's output; it must succeed."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
