"""The OpenAPI document against the running app, behind API keys: every response conforms to it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT
from tests.service.conftest import TOY_KEY, Service

DOCUMENT = ROOT / "configs" / "openapi.json"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
NUM_CASES = 2000


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOY_KEY}", 200),
        (TOY_KEY, 200),
        ("Bearer another", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        (f"Bearer {TOY_KEY}x", 401),
        (f"Basic {TOY_KEY}", 401),
        ("Bearer \xfc", 401),
    ],
)
def test_keys_in_both_forms(toy: Service, header: str | None, status: int) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in ("/health", "/v2/any/health", "/v1/models", "/v2/any/openai/v1/models"):
        response = requests.get(f"{toy.url}{path}", headers=headers, timeout=30)
        assert response.status_code == status, path
    if status == 401:
        message = "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`."
        assert requests.get(f"{toy.url}/health", headers=headers, timeout=30).json() == {"error": message}
        assert response.json() == {
            "detail": message,
            "error": {"message": message, "type": "invalid_request_error", "param": None, "code": "unauthorized"},
        }


def test_every_route_requires_the_key(toy: Service) -> None:
    for path, operations in json.loads(DOCUMENT.read_text())["paths"].items():
        for method in operations:
            response = requests.request(method, f"{toy.url}{path}", timeout=30)
            assert response.status_code == 401, (method, path)
    for path in ("/openapi.json", "/nope"):
        assert requests.get(f"{toy.url}{path}", timeout=30).status_code == 401


def test_every_response_conforms_to_the_document(toy: Service, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            "run",
            DOCUMENT,
            f"--url={toy.url}",
            f"--header=Authorization: Bearer {TOY_KEY}",
            f"--checks={CHECKS}",
            "--phases=examples,coverage,fuzzing,stateful",
            "--max-examples=4",
            "--seed=1",
            "--generation-database=none",
            "--request-timeout=60",
            "--continue-on-failure",
            "--no-color",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr
    (num_cases,) = re.findall(r"(\d+) generated", done.stdout)
    print(f"{num_cases} cases")
    assert int(num_cases) >= NUM_CASES
