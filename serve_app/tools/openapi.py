"""The OpenAPI document as a file, without a service behind it."""

import json
from typing import Any, cast

from serve_app.config import AppSettings, EditorSettings, WeightsSource
from serve_app.ingress.app import build_app
from serve_app.ingress.backend import Backend
from serve_app.ingress.prepare import Preparer


def openapi_text() -> str:
    """What configs/openapi.json holds. It does not depend on the settings."""
    settings = AppSettings(editor=EditorSettings(base=WeightsSource(path="tiny:edit")))
    nobody = cast(Any, None)
    app = build_app(Backend(settings, nobody, nobody, nobody, nobody, Preparer(settings)))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"
