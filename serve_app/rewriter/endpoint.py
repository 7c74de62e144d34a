"""A rewriter at an OpenAI-compatible server, such as vLLM or SGLang."""

import asyncio
import json
import logging
import math
from ipaddress import ip_network
from pathlib import Path

from serve_app.config import RewriterSettings
from serve_app.edits.images import encode_base64, encode_picture, resample
from serve_app.edits.request import OutputFormat, Pictures, Pixels, Rewrite, RewriteRequest, size_of
from serve_app.edits.sizes import Size
from serve_app.net.origins import origin_of
from serve_app.net.outbound import Outbound, Unreachable, chunks_of
from serve_app.rewriter.instructions import conversation, parse_answer

logger = logging.getLogger(__name__)

MAX_ENDPOINT_CALLS = 16
"""Calls of one process at once. Each holds its pictures, a few megabytes."""

MAX_ENDPOINT_WAITING = 64
"""Prompts that wait for one of these calls."""

MAX_ENDPOINT_BYTES = 2**20
"""Of a response; an answer is a few kilobytes."""

# The operator chose the server, which is usually in a private network.
_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_JPEG = OutputFormat("jpeg", quality=95)


class EndpointRewriter:
    """Sends `POST ENDPOINT/chat/completions` with the same instructions as the Rewriter deployment's model gets. The
    caller bounds the time. Lives on one event loop."""

    def __init__(self, settings: RewriterSettings) -> None:
        endpoint = settings.endpoint or ""
        self._settings = settings
        self._url = f"{endpoint}/chat/completions"
        self._outbound = Outbound((origin_of(endpoint) or "",), _ANYWHERE, settings.timeout_s)
        self._places = asyncio.Semaphore(MAX_ENDPOINT_CALLS)
        self._num_calls = 0

    async def rewrite(self, request: RewriteRequest, pictures: Pictures) -> Rewrite:
        """A better instruction, or the reason why there is none."""
        if self._num_calls >= MAX_ENDPOINT_CALLS + MAX_ENDPOINT_WAITING:
            return Rewrite(None, "too many prompts wait for the rewriter")
        self._num_calls += 1
        try:
            async with self._places:
                return await self._call(request, pictures)
        except Unreachable as problem:
            logger.warning("the rewriter's endpoint gave no answer for %s: %s", request.request_id, problem)
            return Rewrite(None, "the rewriter's endpoint could not be reached, or did not answer in time")
        finally:
            self._num_calls -= 1

    async def _call(self, request: RewriteRequest, pictures: Pictures) -> Rewrite:
        try:
            headers = await asyncio.to_thread(self._headers)
        except (OSError, ValueError) as problem:
            # Never the text of a ValueError, which may quote the key.
            logger.error("rewriter.key_file cannot be read or holds no key: %s", type(problem).__name__)
            return Rewrite(None, "the rewriter's key is not configured")
        content = await asyncio.to_thread(self._body, request.prompt, pictures)
        async with self._outbound.exchange("POST", self._url, headers, content) as response:
            if response.status_code != 200:
                logger.warning("the rewriter's endpoint answered %s with %d", request.request_id, response.status_code)
                return Rewrite(None, f"the rewriter's endpoint answered with status {response.status_code}")
            data = b"".join([chunk async for chunk in chunks_of(response, MAX_ENDPOINT_BYTES)])
        return _parsed(data)

    def _headers(self) -> dict[str, str]:
        # identity: the response is read raw.
        headers = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "qwen-camera-edit"}
        if self._settings.key_file is not None:
            key = Path(self._settings.key_file).expanduser().read_text(encoding="ascii").strip()
            if not key or not key.isprintable():
                raise ValueError("no key")
            headers["authorization"] = f"Bearer {key}"
        return headers

    def _body(self, prompt: str, pictures: Pictures) -> bytes:
        parts = [{"type": "image_url", "image_url": {"url": self._data_url(each.vae_pixels)}} for each in pictures]
        body = {
            "model": self._settings.model,
            "messages": conversation(prompt, parts),
            "max_tokens": self._settings.max_new_tokens,
            "temperature": 0,
        }
        return json.dumps(body).encode()

    def _data_url(self, pixels: Pixels) -> str:
        size = size_of(pixels)
        if size.pixels > self._settings.max_picture_px:
            scale = math.sqrt(self._settings.max_picture_px / size.pixels)
            pixels = resample(pixels, Size(max(1, int(size.width * scale)), max(1, int(size.height * scale))))
        return f"data:{_JPEG.media_type};base64,{encode_base64(encode_picture(pixels, _JPEG))}"


def _parsed(response: bytes) -> Rewrite:
    try:
        answer = json.loads(response)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):  # RecursionError: nested too deeply
        answer = None
    if not isinstance(answer, str):
        return Rewrite(None, "the rewriter's endpoint answered with no message")
    return parse_answer(answer)
