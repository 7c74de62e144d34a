"""`camera-edit run` with weights that cannot be loaded: it ends and says why."""

from pathlib import Path

from tests.processes import free_port, starting
from tests.service.conftest import serve_run, stop, tiny_file

LIMIT_S = 180


def test_it_ends_with_status_1_and_the_reason_as_its_last_line(tmp_path: Path) -> None:
    log_file = tmp_path / "serve.log"
    editor = {"base": {"path": "/no/such/weights"}}
    file = tiny_file(tmp_path / "tiny.yaml", free_port(), editor=editor, rewriter=None)
    with starting():
        process = serve_run(file, log_file, "camera-edit")
        try:
            exit_code = process.wait(LIMIT_S)  # raises after that
        finally:
            stop(process)
    log = log_file.read_text()
    assert exit_code == 1, log
    last = log.splitlines()[-1]
    assert last.startswith("camera-edit: The service did not start: "), log
    assert "/no/such/weights" in last
