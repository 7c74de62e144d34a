"""`camera-edit run FILE`: runs `serve run FILE` as a child process and drains the service before it stops.

On SIGTERM, the child and Ray's processes end at once (`ray/_private/worker.py`), and requests in flight are aborted.
No code of the application runs in the child, so only a parent process can drain first.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from ray.serve.schema import ServeDeploySchema

from serve_app.errors import ConfigError, ServiceError, StartupError
from serve_app.tools.check import check_file
from serve_app.tools.drain import Print, drain
from serve_app.tools.recorded_cluster import ADDRESS_VARIABLE, stale_record

STOP_S = 60.0
"""How long the child may take to end after SIGTERM, before SIGKILL."""

_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class _SecondSignal(Exception):
    """Raised by the second SIGTERM or Ctrl-C: stop without waiting for the work in flight."""


def run(file: Path, grace_s: float, print_line: Print) -> int:
    """Run the file until SIGTERM or Ctrl-C. Then reject new work, finish accepted work within `grace_s` seconds, and
    stop; a second signal stops at once. Returns the exit status.

    Raises:
        ConfigError: the file does not pass `camera-edit check`, or holds more than one application.
        StartupError: the service did not start, or the child ended without a signal to this process.
    """
    checked = check_file(file)
    if len(checked.settings) != 1:
        raise ConfigError(f"{file} holds {len(checked.settings)} applications; this command runs one.")
    stop_requested = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, _raise_second_signal)
        stop_requested.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, request_stop)
    with TemporaryDirectory() as folder:
        reason_file = Path(folder) / "reason"
        command: list[str | Path] = [sys.executable, "-m", "serve_app.tools.serve_run", file, reason_file]
        # start_new_session: else Ctrl-C would reach the child directly.
        process = subprocess.Popen(command, env=_environment(print_line), start_new_session=True)
        try:
            while process.poll() is None and not stop_requested.wait(0.2):
                pass
            if process.poll() is not None:
                raise _describe_end(process.returncode, reason_file)
            return _drain(url_of(checked.serve), checked.settings[0].operator_keys_file, grace_s, print_line)
        except _SecondSignal:
            return 1
        finally:
            _stop(process)


def _describe_end(status: int, reason_file: Path) -> StartupError:
    if reason_file.exists():
        return StartupError(f"The service did not start: {reason_file.read_text()}")
    return StartupError(f"The process that runs the service ended with status {status}. Its output is above.")


def _environment(print_line: Print) -> dict[str, str]:
    """The environment of the child: this process's own, with a new cluster if the recorded one has stopped."""
    path = stale_record()
    if path is None:
        return dict(os.environ)
    print_line(f"{path} names a cluster that does not answer: starting a new one with {ADDRESS_VARIABLE}=local")
    return {**os.environ, ADDRESS_VARIABLE: "local"}


def url_of(config: ServeDeploySchema) -> str:
    """The URL of the file's application, as seen from this machine."""
    options = config.http_options
    host = _ANY_HOST.get(options.host, options.host)
    prefix = config.applications[0].route_prefix or "/"
    bracketed = f"[{host}]" if ":" in host else host
    return f"http://{bracketed}:{options.port}{options.root_path}{prefix}".rstrip("/")


def _raise_second_signal(number: int, frame: FrameType | None) -> None:
    raise _SecondSignal


def _drain(url: str, keys_file: str | None, grace_s: float, print_line: Print) -> int:
    try:
        drain(url, grace_s, print_line, keys_file=keys_file)
    except ServiceError as problem:
        print_line(f"stopping without a drain: {problem}")
        return 1
    print_line("drained: stopping")
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
