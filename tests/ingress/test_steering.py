"""Headers that would steer Serve's proxy: dropped in front of it, or refused behind it."""

import asyncio
from typing import Any

import pytest
import yaml
from ray._common.utils import import_attr
from ray.serve._private.http_util import (
    parse_disconnect_disabled_header,
    parse_request_timeout_header,
    validate_http_proxy_callback_return,
)

from serve_app.config import AppSettings
from serve_app.ingress.proxy import STAYING_HEADER, TIMEOUT_HEADER
from tests.conftest import ROOT
from tests.ingress.openai_harness import harness, told

CONFIGS = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_tells_serve_to_drop_them(path: Any) -> None:
    options = yaml.safe_load(path.read_text())["controller_options"]
    named = options["runtime_env"]["env_vars"]["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    middleware, *_ = validate_http_proxy_callback_return(import_attr(named)())
    seen: list[dict[bytes, bytes]] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))

    sent = [(b"X-Request-Timeout-Seconds", b"0.01"), (STAYING_HEADER.encode(), b"?1"), (b"x-request-id", b"mine")]
    scope = {"type": "http", "headers": sent}
    app: Any = middleware.cls(proxy, *middleware.args, **middleware.kwargs)
    asyncio.run(app(scope, None, None))
    assert seen == [{b"x-request-id": b"mine"}]
    assert len(scope["headers"]) == 3  # the caller's own is left alone


def test_serve_reads_the_headers_that_are_dropped() -> None:
    assert parse_request_timeout_header({TIMEOUT_HEADER.encode(): b"0.01"}, None) == 0.01
    assert parse_disconnect_disabled_header({STAYING_HEADER.encode(): b"?1"})


def test_where_they_come_through_the_harmful_one_is_refused(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings)
    refused = app.client.get("/v1/models", headers={STAYING_HEADER: "?1"})
    assert STAYING_HEADER in told(refused, 400)["message"]
    assert app.client.get("/health", headers={STAYING_HEADER: "?1"}).status_code == 400
    assert app.client.get("/v1/models", headers={STAYING_HEADER: "?0", TIMEOUT_HEADER: "0.01"}).status_code == 200
