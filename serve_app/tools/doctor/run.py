"""Runs all checks in order and prints what they found."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from serve_app.tools.doctor.finding import Finding
from serve_app.tools.doctor.installed import accepted_python, check_packages, check_python, missing, pinned

Print = Callable[[str], None]


def run_doctor(file: "Path | None", deep: bool, as_json: bool, print_line: Print) -> bool:
    """Check this machine for a Serve file, print the findings, and return whether there is no problem.

    Args:
        file: None: configs/tiny-cpu.yaml.
        deep: hash all weights, not the LoRAs alone.
    """
    findings = []
    for finding in examine(file, deep):
        findings.append(finding)
        if not as_json:
            print_line(describe(finding))
    num_problems = sum(not each.ok for each in findings)
    if as_json:
        print_line(json.dumps({"ok": num_problems == 0, "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        print_line(f"{num_problems or 'no'} problem{'' if num_problems == 1 else 's'}")
    return num_problems == 0


def examine(file: "Path | None", deep: bool) -> Iterator[Finding]:
    """Yield a finding per check. Stops early where Python or a missing package would break the other checks."""
    python, pins = check_python(sys.version_info[:3], accepted_python()), pinned()
    yield python
    if not python.ok:
        return
    yield check_packages(pins)
    if missing(pins):
        return
    # Imported here, after the checks of what it needs.
    from serve_app.tools.doctor.examine import examine_machine
    from serve_app.tools.doctor.machine import read_machine

    yield from examine_machine(file, read_machine(), deep)


def describe(finding: Finding) -> str:
    """A line, or for a problem two: what is wrong, and the fix."""
    lines = finding.message.splitlines()
    text = "\n         ".join([f"{'ok' if finding.ok else 'PROBLEM':<8} {finding.check}: {lines[0]}", *lines[1:]])
    return text if finding.ok else f"{text}\n         fix: {finding.fix}"
