"""How real senders write a body: under another Content-Type, compressed, or with parts that are not as RFC 7578 has
them."""

import base64
import gzip
import json
import urllib.request
import zlib
from collections.abc import Callable
from typing import Any

import openai
import pytest
import requests

from serve_app.config import AppSettings
from serve_app.ingress.parsing.bodies import decompressed
from tests.ingress.openai_harness import DATA_URL, EDITS, PNG, Harness, error_of, kept_harness
from tests.pictures import photograph, to_base64

JOB = json.dumps({"input": {"image": DATA_URL, "prompt": "x"}}).encode()
EDIT = json.dumps({"image": DATA_URL, "prompt": "x"}).encode()
BODIES = [("/runsync", JOB), ("/v2/any/run", JOB), (EDITS, EDIT)]
both = pytest.mark.parametrize(("path", "body"), BODIES, ids=["runsync", "run", "edits"])


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return kept_harness(tiny_settings)


@both
@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",  # curl -d, Python's urllib
        "application/x-www-form-urlencoded; charset=UTF-8",  # jQuery
        "text/plain;charset=UTF-8",  # fetch(url, {body: JSON.stringify(…)})
        "application/json; charset=utf-8",
        "",
    ],
)
def test_json_under_another_content_type(app: Harness, path: str, body: bytes, content_type: str) -> None:
    response = app.client.post(path, content=body, headers={"content-type": content_type} if content_type else {})
    assert response.status_code == 200, response.text


@both
def test_json_as_pythons_own_clients_send_it_by_default(app: Harness, path: str, body: bytes) -> None:
    by_urllib, handler = urllib.request.Request(f"http://testserver{path}", body), urllib.request.HTTPHandler()
    handler.parent = urllib.request.OpenerDirector()
    named = dict(handler.http_request(by_urllib).header_items())
    assert named["Content-type"] == "application/x-www-form-urlencoded"
    by_requests = requests.Request("POST", f"http://testserver{path}", data=body.decode()).prepare()
    assert "content-type" not in by_requests.headers
    for headers in (named, dict(by_requests.headers)):
        response = app.client.post(path, content=body, headers=headers)
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
    ".NET's name": (
        'Content-Disposition: form-data; name=image; filename="=?utf-8?B?5a6iLnBuZw==?="; '
        "filename*=utf-8''%E5%AE%A2.png"
    ),
    ".NET's bytes": "Content-Disposition: form-data; name=image",
    "Spring's bytes": (
        'Content-Disposition: form-data; name="image"\r\nContent-Type: application/octet-stream\r\n'
        f"Content-Length: {len(PNG)}"
    ),
    "Dart's bytes": 'content-disposition: form-data; name="image"\r\ncontent-type: application/octet-stream',
}


@pytest.mark.parametrize("head", FILES.values(), ids=FILES)
def test_a_file_without_a_plain_filename(app: Harness, head: str) -> None:
    response = app.client.post(EDITS, **multipart((head, PNG), PROMPT))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_bytes_that_are_sent_as_a_text(app: Harness, kind: str) -> None:
    """By requests, as by curl's `-F image=<FILE`: no name and no type."""
    picture = base64.b64decode(to_base64(photograph("astronaut", 64, 64), kind))
    prepared = requests.Request("POST", "http://testserver", files={"image": (None, picture), "prompt": (None, "x")})
    sent = prepared.prepare()
    assert isinstance(sent.body, bytes)
    assert b'name="image"\r\n\r\n' in sent.body
    response = app.client.post(EDITS, content=sent.body, headers=dict(sent.headers))
    assert response.status_code == 200, response.text


def test_parts_as_spring_and_dart_write_them(app: Harness) -> None:
    """Spring's converters write a number, a boolean and a list as JSON; Dart writes text outside ASCII as binary."""
    spring = [
        (f'Content-Disposition: form-data; name="{name}"\r\nContent-Type: application/json', text)
        for name, text in (("n", b"2"), ("seed", b"7"), ("rewrite_prompt", b"true"))
    ]
    dart = (
        'content-disposition: form-data; name="prompt"\r\ncontent-type: text/plain; charset=utf-8\r\n'
        "content-transfer-encoding: binary"
    )
    parts = (*spring, (FILES["Dart's bytes"], PNG), (dart, "Bär".encode()))
    response = app.client.post(EDITS, **multipart(*parts))
    assert response.status_code == 200, response.text
    assert [request.sampling.seed for request in app.editor.requests] == [7, 8]
    assert {request.prompt for request in app.editor.requests} == {"a precise wish"}
    assert app.rewriter.jobs[0].prompt == "Bär"


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


def test_pythons_absent_values_and_booleans(app: Harness) -> None:
    """httpx writes None as an empty text; requests leaves it out, and writes a boolean as `str` does."""
    values = {"prompt": "x", "seed": None, "azimuth": None, "stream": False, "rewrite_prompt": True}
    sent = requests.Request("POST", "http://testserver", data=values, files={"image": ("a.png", PNG)}).prepare()
    assert isinstance(sent.body, bytes)
    assert b"False" in sent.body
    by_requests = app.client.post(EDITS, content=sent.body, headers=dict(sent.headers))
    by_httpx = app.client.post(EDITS, data=values, files={"image": ("a.png", PNG)})
    for response in (by_requests, by_httpx):
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
    assert len(app.rewriter.jobs) == 2


def test_openais_client_writes_nulls_and_booleans(app: Harness) -> None:
    client = openai.OpenAI(api_key="x", base_url="http://testserver/v1", http_client=app.client)
    extra: dict[str, Any] = {"seed": None, "views": None, "azimuth": None, "rewrite_prompt": False}
    answer = client.images.edit(image=PNG, prompt="x", size=None, n=None, user="null", extra_body=extra)
    assert answer.data is not None
    assert len(answer.data) == 1


@pytest.mark.parametrize("text", ["null", "None", "undefined"])
def test_a_prompt_may_say_null(app: Harness, text: str) -> None:
    assert app.form(("image", PNG), ("prompt", text), ("negative_prompt", text)).status_code == 200
    request = app.editor.requests[0]
    assert (request.prompt, request.sampling.negative_prompt) == (text, text)
