"""Finds weights in the cache of Hugging Face's client, and asks the hub whether they could be downloaded."""

import queue
import threading
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from serve_app.config import WeightsSource
from serve_app.tools.doctor.machine import Hub

TIMEOUT_S = 3.0


def cached_folder(hub: Hub, source: WeightsSource) -> Path | None:
    """The folder of a repository in the cache, which may lack files; None if there is none."""
    try:
        found = snapshot_download(
            source.path, revision=source.revision, cache_dir=hub.cache, local_files_only=True, allow_patterns=[]
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return Path(found)


def access_problem(hub: Hub, source: WeightsSource) -> str | None:
    """Why the repository cannot be downloaded, or None. One request, which takes at most `TIMEOUT_S`."""
    answers: queue.Queue[str | None] = queue.Queue()

    def ask() -> None:
        try:
            HfApi(endpoint=hub.url).model_info(source.path, revision=source.revision, timeout=TIMEOUT_S)
        # The client's own errors and those of its transport have no base class in common.
        except Exception as problem:
            answers.put(str(problem).partition("\n")[0] or type(problem).__name__)
        else:
            answers.put(None)

    # A daemon thread: resolving a name has no timeout, and must not delay the end of the process.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=TIMEOUT_S)
    except queue.Empty:
        return f"{hub.url} did not answer within {TIMEOUT_S:g} s"
