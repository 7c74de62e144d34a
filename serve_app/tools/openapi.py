"""Builds the OpenAPI document without starting the service."""

import json
from typing import Any, cast

from serve_app.config import AppSettings, EditorSettings, WeightsSource
from serve_app.ingress.app import build_app
from serve_app.ingress.backend import Backend
from serve_app.ingress.pictures.prepare import Preparer


def openapi_text() -> str:
    """The text of configs/openapi.json, which does not depend on the settings."""
    settings = AppSettings(editor=EditorSettings(base=WeightsSource(path="tiny:edit")))
    unused = cast(Any, None)
    app = build_app(Backend(settings, unused, unused, unused, unused, Preparer(settings, unused)))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"
