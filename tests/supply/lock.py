"""Writes configs/kuberay/requirements.lock: `python -m tests.supply.lock`, on Linux with Python 3.11."""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.conftest import ROOT

LOCK = ROOT / "configs" / "kuberay" / "requirements.lock"
HEAD = """\
# What the image installs: the dependencies in pyproject.toml with its extras `quantize` and `tracing`, for Linux on
# x86-64 and Python 3.11. After a change of pyproject.toml: python -m tests.supply.lock
"""
_OPTIONS = ("--dry-run", "--ignore-installed", "--only-binary", ":all:", "--quiet")


def main() -> None:
    """Resolve the dependencies without installing anything, and write name, version and hash of each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [f"{ROOT}[quantize,tracing]", *project["build-system"]["requires"]]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", *_OPTIONS, "--report", str(report), *wanted]
        subprocess.run(command, check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    rows = []
    for each in installs:
        name = re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower()
        if name != project["project"]["name"]:
            checksum = each["download_info"]["archive_info"]["hashes"]["sha256"]
            rows.append(f"{name}=={each['metadata']['version']} --hash=sha256:{checksum}\n")
    LOCK.write_text(HEAD + "".join(sorted(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
