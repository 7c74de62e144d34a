"""configs/openapi.json matches the code, and has examples."""

import json

from serve_app.tools.openapi import openapi_text
from tests.conftest import ROOT

DOCUMENT = ROOT / "configs" / "openapi.json"


def test_the_document_matches_the_code() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == openapi_text(), "run: camera-edit openapi > configs/openapi.json"


def test_each_kind_of_request_has_an_example() -> None:
    paths = json.loads(DOCUMENT.read_text(encoding="utf-8"))["paths"]
    job = paths["/runsync"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert job.keys() == {"edit", "camera", "views", "batch", "references", "rewriting", "policy"}
    for encoding in ("multipart/form-data", "application/json"):
        edit = paths["/v1/images/edits"]["post"]["requestBody"]["content"][encoding]["examples"]
        assert edit.keys() == {"single", "several", "camera", "views", "stream"}
