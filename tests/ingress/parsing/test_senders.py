"""How real senders write a body: under another Content-Type, compressed, or with parts that are not as RFC 7578 has
them."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from serve_app.config import AppSettings
from serve_app.ingress.parsing.bodies import decompressed
from tests.ingress.openai_harness import DATA_URL, EDITS, PNG, Harness, error_of, harness

JOB = json.dumps({"input": {"image": DATA_URL, "prompt": "x"}}).encode()
EDIT = json.dumps({"image": DATA_URL, "prompt": "x"}).encode()
BODIES = [("/runsync", JOB), ("/v2/any/run", JOB), (EDITS, EDIT)]
both = pytest.mark.parametrize(("path", "body"), BODIES, ids=["runsync", "run", "edits"])


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return harness(tiny_settings)


@both
@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",  # curl -d
        "text/plain;charset=UTF-8",  # fetch(url, {body: JSON.stringify(…)})
        "application/json; charset=utf-8",
        "",
    ],
)
def test_json_under_another_content_type(app: Harness, path: str, body: bytes, content_type: str) -> None:
    response = app.client.post(path, content=body, headers={"content-type": content_type} if content_type else {})
    assert response.status_code == 200, response.text


def test_json_behind_blanks_under_curls_content_type(app: Harness) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert app.client.post(EDITS, content=b"\r\n  " + EDIT, headers=headers).status_code == 200


def raw_deflate(body: bytes) -> bytes:
    """Without zlib's header, as some clients send it."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZIP", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "identity": ("identity", bytes),
}


@both
@pytest.mark.parametrize(("encoding", "encode"), ENCODERS.values(), ids=ENCODERS)
def test_a_compressed_body(
    app: Harness, path: str, body: bytes, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    response = app.client.post(path, content=encode(body), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x" * 1000])
@both
def test_an_encoding_that_is_not_read_is_named(app: Harness, path: str, body: bytes, encoding: str) -> None:
    response = app.client.post(path, content=body, headers={"content-encoding": encoding})
    assert response.status_code == 415
    assert "Content-Encoding must be gzip or deflate" in response.text
    assert len(response.text) < 1000


@pytest.mark.parametrize("body", [EDIT, gzip.compress(EDIT)[:-9], gzip.compress(EDIT) + b"x", b""])
def test_a_body_that_is_not_compressed_or_not_whole(app: Harness, body: bytes) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    assert (
        "not what its Content-Encoding says"
        in error_of(app.client.post(EDITS, content=body, headers=headers), 400)["message"]
    )


@both
def test_a_body_that_grows_beyond_the_limit(app: Harness, path: str, body: bytes) -> None:
    bomb = gzip.compress(bytes(app.settings.limits.max_body_bytes + 1))
    response = app.client.post(path, content=bomb, headers={"content-encoding": "gzip"})
    assert response.status_code == 413
    assert "larger than the 20971520 bytes" in response.text


def test_no_more_is_decompressed_than_the_limit() -> None:
    assert decompressed(gzip.compress(bytes(1000)), 1000) == bytes(1000)


EDGE = "edge"


def multipart(*parts: tuple[str, bytes]) -> dict[str, Any]:
    """The arguments of a request of these parts: their headers as they are, and their contents."""
    body = b"".join(f"--{EDGE}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts)
    headers = {"content-type": f"multipart/form-data; boundary={EDGE}"}
    return {"content": body + f"--{EDGE}--\r\n".encode(), "headers": headers}


PROMPT = ('Content-Disposition: form-data; name="prompt"', b"x")
FILES = {
    "RFC 5987's name": (
        "Content-Disposition: form-data; name=image; filename*=utf-8''%E5%AE%A2.png\r\nContent-Type: image/png"
    ),
    "no name, but a type": 'Content-Disposition: form-data; name="image"\r\nContent-Type: image/png',
    "no name, octet-stream": 'Content-Disposition: form-data; name="image"\r\nContent-Type: application/octet-stream',
    "an empty name": 'Content-Disposition: form-data; name="image"; filename=""\r\nContent-Type: image/png',
    "both names": "Content-Disposition: form-data; name=image; filename=a.png; filename*=UTF-8''b.png",
}


@pytest.mark.parametrize("head", FILES.values(), ids=FILES)
def test_a_file_without_a_plain_filename(app: Harness, head: str) -> None:
    response = app.client.post(EDITS, **multipart((head, PNG), PROMPT))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("charset", ["ISO-8859-1", "latin1", "windows-1252"])
def test_a_text_in_javas_default_charset(app: Harness, charset: str) -> None:
    head = f'Content-Disposition: form-data; name="prompt"\r\nContent-Type: text/plain; charset={charset}'
    response = app.client.post(EDITS, **multipart((FILES["both names"], PNG), (head, "Bär".encode("latin-1"))))
    assert response.status_code == 200, response.text
    assert app.editor.requests[0].prompt == "Bär"


@pytest.mark.parametrize("text", ["null", "undefined", "None", "NULL", ""])
def test_texts_that_mean_null(app: Harness, text: str) -> None:
    """openai-node writes null into a form, FormData undefined, and Python None."""
    names = ("seed", "n", "size", "quality", "model", "background", "stream", "views", "user", "url", "image[]", "mask")
    response = app.form(("image", PNG), ("prompt", "x"), *((name, text) for name in names))
    assert response.status_code == 200, response.text
    assert app.editor.requests[0].size.final.width == 256


@pytest.mark.parametrize("text", ["null", "None", "undefined"])
def test_a_prompt_may_say_null(app: Harness, text: str) -> None:
    assert app.form(("image", PNG), ("prompt", text), ("negative_prompt", text)).status_code == 200
    request = app.editor.requests[0]
    assert (request.prompt, request.sampling.negative_prompt) == (text, text)
