"""The pages for browsers: the playground at /, the API's reference at /docs, and what they need to know.

A page is sent with its stylesheets inside it, allowed by their hashes: Serve's proxy takes long for each request, and
a browser shows nothing before it has the stylesheets.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from serve_app.config import AppSettings, LoraSettings
from serve_app.edits.camera import AZIMUTH_WORDS, DISTANCE_WORDS, ELEVATION_WORDS, CameraPose
from serve_app.edits.images import ENCODERS
from serve_app.ingress.backend import Backend
from serve_app.ingress.parsing.fields import MAX_ORBIT, MAX_SEED

FOLDER = Path(__file__).parent.parent / "playground"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src {styles}; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
_PREFIX = "/playground/"
_POSES, _SETTINGS = "poses.json", "settings.json"
_PAGES = {"/": "page.html", "/docs": "docs.html", "/redoc": "docs.html"}
_STYLESHEET = re.compile(rf'<link rel="stylesheet" href="{_PREFIX.lstrip("/")}([\w.-]+)">')


@dataclass(frozen=True)
class _File:
    """A file as it is sent.

    Attributes:
        styles: the sources of styles that the content's policy allows.
    """

    content: bytes
    media_type: str
    styles: str = "'self'"

    @property
    def headers(self) -> dict[str, str]:
        etag = f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'
        return {**_HEADERS, "content-security-policy": _POLICY.format(styles=self.styles), "etag": etag}


def _read_files() -> dict[str, _File]:
    files = sorted(file for file in FOLDER.iterdir() if file.suffix in _MEDIA_TYPES)
    read = {file.name: _File(file.read_bytes(), _MEDIA_TYPES[file.suffix]) for file in files}
    return {**read, **{name: _with_styles(read[name], read) for name in _PAGES.values()}}


def _with_styles(page: _File, files: dict[str, _File]) -> _File:
    """The page with its stylesheets inside it."""
    text = page.content.decode()
    sheets = {name: files[name].content for name in _STYLESHEET.findall(text)}
    text = _STYLESHEET.sub(lambda link: f"<style>{sheets[link[1]].decode()}</style>", text)
    hashes = [base64.b64encode(hashlib.sha256(sheet).digest()).decode() for sheet in sheets.values()]
    return _File(text.encode(), page.media_type, " ".join(f"'sha256-{each}'" for each in hashes))


def is_page(path: str) -> bool:
    """Whether a path is a page's or that of one of its files."""
    return path in _PAGES or path.startswith(_PREFIX)


def is_open_page(path: str) -> bool:
    """Whether a page needs no key where there is a playground. The settings do, since they name the adapters."""
    return is_page(path) and path != f"{_PREFIX}{_SETTINGS}"


def playground_router(backend: Backend) -> APIRouter:
    """The pages and their files, at the root only. Without a playground, / does not exist."""
    router = APIRouter(include_in_schema=False)
    files = {
        **_read_files(),
        _POSES: _json(poses(needs_key=backend.api_keys is not None, has_playground=backend.has_playground)),
    }

    def add_page(path: str, name: str) -> None:
        @router.get(path)
        async def page(request: Request) -> Response:
            return _response(request, files[name])

    for path, name in _PAGES.items():
        if path != "/" or backend.has_playground:
            add_page(path, name)

    @router.get(f"{_PREFIX}{{name}}")
    async def file(name: str, request: Request) -> Response:
        if name == _SETTINGS:
            return _response(request, _json(page_settings(backend.settings, backend.loras)))
        if name not in files:
            raise HTTPException(404)
        return _response(request, files[name])

    return router


def _json(content: dict[str, Any]) -> _File:
    return _File(json.dumps(content).encode(), _MEDIA_TYPES[".json"])


def _response(request: Request, file: _File) -> Response:
    headers = file.headers
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["etag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def poses(*, needs_key: bool, has_playground: bool) -> dict[str, Any]:
    """The 96 camera poses with the words that each puts in front of the prompt, whether the API needs a key, and
    whether there is a page at /."""
    # Each words' smallest distance: 1.4 has those of 1.0.
    distances = {words: distance for distance, words in reversed(DISTANCE_WORDS.items())}
    grid = product(AZIMUTH_WORDS, ELEVATION_WORDS, sorted(distances.values()))
    trained = [CameraPose(*each) for each in grid]
    listed = [{**asdict(pose), "words": pose.tokens} for pose in trained]
    return {"needs_key": needs_key, "has_playground": has_playground, "poses": listed}


def page_settings(settings: AppSettings, loras: Iterable[LoraSettings]) -> dict[str, Any]:
    """The settings that the page shows, the adapters of the moment, and the limits of its fields."""
    shown = {"name", "apply", "weight", "min_weight", "max_weight"}
    return {
        "model": settings.served_model_names[0],
        "has_tiny_weights": settings.editor.base.is_embedded,
        "adapters": [lora.model_dump(include=shown) for lora in loras],
        "rewriter": settings.rewriter is not None,
        "formats": list(ENCODERS),
        "max_orbit": MAX_ORBIT,
        "max_seed": MAX_SEED,
        "limits": settings.limits.model_dump(mode="json"),
    }
