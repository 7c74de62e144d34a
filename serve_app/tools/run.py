"""`camera-edit run FILE`: `serve run FILE` that lets work finish before it stops.

On SIGTERM, `serve run` ends at once, and Ray's processes with it (`ray/_private/worker.py`): what is in flight is cut.
Nothing of an application runs in that process, so this one stands before it.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from ray.serve.schema import ServeDeploySchema

from serve_app.errors import ConfigError, ServiceError
from serve_app.tools.check import check_file
from serve_app.tools.drain import Print, drain
from serve_app.tools.recorded_cluster import ADDRESS_VARIABLE, stale_record

STOP_S = 60.0
"""For `serve run` to end after its SIGTERM."""

_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class _Again(Exception):
    """A second signal: the work is not worth waiting for."""


def run(file: Path, grace_s: float, say: Print) -> int:
    """Run the file until its end, or until SIGTERM or Ctrl-C: then take no new work, finish what was taken within
    `grace_s` seconds, and stop. A second signal stops at once. Returns the exit status.

    Raises:
        ConfigError: the file does not pass `camera-edit check`, or holds more than one application.
    """
    checked = check_file(file)
    if len(checked.settings) != 1:
        raise ConfigError(f"{file} holds {len(checked.settings)} applications; this command runs one.")
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, _again)
        asked.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, ask)
    # A session of its own, or Ctrl-C would reach it directly.
    command: list[str | Path] = [Path(sys.executable).parent / "serve", "run", file]
    process = subprocess.Popen(command, env=_environment(say), start_new_session=True)
    try:
        while process.poll() is None and not asked.wait(0.2):
            pass
        if process.poll() is not None:
            return process.returncode
        return _drained(url_of(checked.serve), checked.settings[0].operator_keys_file, grace_s, say)
    except _Again:
        return 1
    finally:
        _stop(process)


def _environment(say: Print) -> dict[str, str]:
    """For `serve run`: this process's own, but where Ray would look for a cluster that is gone."""
    path = stale_record()
    if path is None:
        return dict(os.environ)
    say(f"{path} names a cluster that does not answer: starting a new one with {ADDRESS_VARIABLE}=local")
    return {**os.environ, ADDRESS_VARIABLE: "local"}


def url_of(config: ServeDeploySchema) -> str:
    """Where this machine reaches the file's application."""
    options = config.http_options
    host = _ANY_HOST.get(options.host, options.host)
    prefix = config.applications[0].route_prefix or "/"
    bracketed = f"[{host}]" if ":" in host else host
    return f"http://{bracketed}:{options.port}{options.root_path}{prefix}".rstrip("/")


def _again(number: int, frame: FrameType | None) -> None:
    raise _Again


def _drained(url: str, keys_file: str | None, grace_s: float, say: Print) -> int:
    try:
        drain(url, grace_s, say, keys_file=keys_file)
    except ServiceError as problem:
        say(f"stopping without a drain: {problem}")
        return 1
    say("drained: stopping")
    return 0


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
