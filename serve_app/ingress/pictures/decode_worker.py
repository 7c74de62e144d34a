"""The process that decodes pictures: `python -m serve_app.ingress.pictures.decode_worker FD`.

`decoders.py` starts and ends it. It imports neither Ray nor the HTTP application, so that it is small and starts fast.
"""

import os
import pickle
import signal
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from serve_app.config import LimitSettings, SizeSettings
from serve_app.edits.images import decode_base64, prepare, read_picture
from serve_app.edits.request import PreparedPicture
from serve_app.edits.sizes import Size
from serve_app.errors import InvalidInput

READY = "ready"
"""The first message of a worker."""

_NICENESS = 19
"""As the editor's on a machine without GPUs, so that pictures do not keep the accepted edits waiting."""


@dataclass(frozen=True)
class StoredPicture:
    """A picture's file, or text that is base64 or a data URL, and the field that it came in."""

    field: str
    content: bytes | str


Decoded = tuple[PreparedPicture, Size]
"""A picture at the model's sizes, and its own size."""


def decode(picture: StoredPicture, limits: LimitSettings, sizes: SizeSettings) -> Decoded:
    """
    Raises:
        InvalidInput: too large, or not a picture that `read_picture` accepts.
    """
    decoded = read_picture(_bytes(picture, limits.max_picture_bytes), picture.field, limits)
    return prepare(decoded, sizes), Size(*decoded.size)


def _bytes(picture: StoredPicture, max_bytes: int) -> bytes:
    if isinstance(picture.content, str):
        return decode_base64(picture.content, picture.field, max_bytes)
    if len(picture.content) > max_bytes:
        message = f"{picture.field} is larger than {max_bytes / 2**20:.4g} MiB. Send a smaller file."
        raise InvalidInput(message, picture.field)
    return picture.content


def send(connection: "Connection[Any, Any]", answer: object) -> None:
    """Send an object whose arrays follow it as they are. `Connection` itself would copy them several times."""
    arrays: list[pickle.PickleBuffer] = []
    data = pickle.dumps(answer, 5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    connection.send((data, [view.nbytes for view in views]))
    for view in views:
        while view:
            view = view[os.write(connection.fileno(), view) :]


def receive(connection: "Connection[Any, Any]") -> Any:
    """What `send` sent; its arrays are writable.

    Raises:
        EOFError: the sender has ended.
    """
    data, sizes = connection.recv()
    arrays = [bytearray(size) for size in sizes]
    for array in arrays:
        view = memoryview(array)
        while view:
            if not (num_read := os.readv(connection.fileno(), [view])):
                raise EOFError
            view = view[num_read:]
    return pickle.loads(data, buffers=arrays)


def serve(connection: "Connection[Any, tuple[StoredPicture, LimitSettings, SizeSettings]]") -> None:
    """Answer each picture that arrives, with its Decoded or an InvalidInput. The kernel ends this process with SIGPROF
    when one takes more CPU time than `limits.decode_timeout_s`, also while C code runs."""
    send(connection, READY)
    while True:
        picture, limits, sizes = connection.recv()
        signal.setitimer(signal.ITIMER_PROF, limits.decode_timeout_s)
        answer: Decoded | InvalidInput
        try:
            answer = decode(picture, limits, sizes)
        except InvalidInput as problem:
            answer = problem
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(connection, answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    warnings.simplefilter("ignore")  # Pillow warns of odd files; clients must not fill the log.
    # The pipe ends with the parent, whatever ended that.
    with suppress(EOFError, ConnectionError):
        serve(Connection(int(sys.argv[1])))
