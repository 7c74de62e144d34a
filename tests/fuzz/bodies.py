"""Mutated request bodies of both dialects: mutations of the fields, sometimes followed by mutations of the bytes."""

import json
import random
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tests.fuzz import bytewise, forms
from tests.fuzz.limits import SETTINGS
from tests.fuzz.trees import mutated, to_json
from tests.ingress.openai_harness import DATA_URL, PNG

RUNPOD_PATHS = ("/run", "/runsync", "/v2/any/run", "/v2/any/runsync")
OPENAI_PATHS = ("/v1/images/edits", "/v2/any/openai/v1/images/edits")
JSON = "application/json"

MAX_BODY_BYTES = 2 * SETTINGS.limits.max_body_bytes
"""A longer body would only be refused as too large."""

_CONTENT_TYPES = (
    "",
    "application/json; charset=utf-16",
    "text/plain",
    "multipart/form-data",
    "\xff",
    "application/JSON",
)
_ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-be", "latin-1")


@dataclass(frozen=True)
class Call:
    """A request. `parts`: the lengths of the chunks of its body; the rest of it is the last chunk. `headers`: besides
    its Content-Type."""

    path: str
    content_type: str
    body: bytes
    parts: tuple[int, ...] = field(default=())
    headers: tuple[tuple[bytes, bytes], ...] = ()
    method: str = "POST"


@cache
def runpod_seeds() -> tuple[dict[str, Any], ...]:
    picture = DATA_URL.partition(",")[2]
    all_fields = {
        "image": picture,
        "prompt": "turn it",
        "seed": 7,
        "width": 64,
        "height": 96,
        "azimuth": 90,
        "elevation": -30.5,
        "distance": 1.4,
        "rewrite_prompt": True,
        "num_inference_steps": 4,
        "guidance_scale": 1.5,
        "true_cfg_scale": 2,
        "negative_prompt": "blurry",
        "output_format": "webp",
        "output_quality": 80,
    }
    policy = {"executionTimeout": 60_000, "ttl": 3_600_000, "lowPriority": True}
    return (
        {"input": {"image": picture, "prompt": "x"}},
        {"input": all_fields, "policy": policy, "webhook": None, "s3Config": None},
        {"input": {"images": [picture, DATA_URL], "prompt": ["one", "two"]}},
        {"input": {"images": [DATA_URL], "prompt": "x", "views": [{"azimuth": 45}, {"elevation": 30, "distance": 1}]}},
        {"input": {"image": picture, "views": "orbit:3"}},
    )


@cache
def openai_seeds() -> tuple[dict[str, Any], ...]:
    all_fields = {
        "prompt": "turn it",
        "model": "Qwen-Image-Edit-2511",
        "image": DATA_URL,
        "n": 2,
        "size": "64x96",
        "response_format": "b64_json",
        "output_format": "jpeg",
        "output_compression": 70,
        "background": "auto",
        "quality": "high",
        "input_fidelity": "low",
        "user": "somebody",
        "seed": 5,
        "azimuth": 350,
        "guidance_scale": 1.0,
        "num_inference_steps": 4,
        "rewrite_prompt": False,
    }
    return (
        {"prompt": "x", "image": DATA_URL},
        all_fields,
        {"prompt": "x", "images": [{"image_url": DATA_URL}, {"image_url": DATA_URL}], "stream": True},
        {"image": [DATA_URL, DATA_URL], "views": [{"azimuth": 90}, {"distance": 0.6}], "stream": False},
        {"prompt": "x", "url": DATA_URL, "n": 1, "stream": True, "partial_images": 2},
    )


def make(rng: random.Random) -> Call:
    """A request of either dialect; one in twenty is not mutated."""
    kind = rng.randrange(4)
    if kind < 2:
        call = _json_call(rng, rng.choice(RUNPOD_PATHS), rng.choice(runpod_seeds()))
    elif kind == 2:
        call = _json_call(rng, rng.choice(OPENAI_PATHS), rng.choice(openai_seeds()))
    else:
        path, fields = rng.choice(OPENAI_PATHS), rng.choice(openai_seeds())
        call = as_form(rng, path, fields) if rng.random() < 0.05 else Call(path, *forms.make(rng, fields, PNG))
    content_type = rng.choice(_CONTENT_TYPES) if rng.random() < 0.02 else call.content_type
    body = call.body[:MAX_BODY_BYTES]
    cuts = tuple(rng.randint(1, max(1, len(body))) for _ in range(rng.choice((0, 0, 1, 3))))
    return Call(call.path, content_type, body, cuts)


def as_json(path: str, fields: dict[str, Any]) -> Call:
    """The fields as a valid JSON request."""
    return Call(path, JSON, json.dumps(fields).encode())


def as_form(rng: random.Random, path: str, fields: dict[str, Any]) -> Call:
    """The fields as a valid form request."""
    return Call(path, forms.CONTENT_TYPE, forms.multipart(forms.parts_of(rng, fields, PNG)))


def _json_call(rng: random.Random, path: str, fields: dict[str, Any]) -> Call:
    if rng.random() < 0.05:
        return as_json(path, fields)
    text = to_json(rng, mutated(rng, fields))
    body = _encoded(rng, text)
    if rng.random() < 0.25:
        body = bytewise.mutated(rng, body, [body, PNG], most=2)
    return Call(path, JSON, body)


def _encoded(rng: random.Random, text: str) -> bytes:
    encoding = rng.choice(_ENCODINGS) if rng.random() < 0.1 else "utf-8"
    return text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
