"""The OpenAPI document of the application."""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "Where the server asks for API keys. RunPod's clients may send the bare key, without `Bearer`.",
}
# FastAPI lists this answer wherever a route has a parameter; here such requests get a 400 in the dialect's own shape.
_NOT_OURS = ("HTTPValidationError", "ValidationError")


def document(app: FastAPI) -> dict[str, Any]:
    """What the routes take and give, as they really answer. Kept in `app.openapi_schema` after the first call."""
    if app.openapi_schema is None:
        told = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for name in _NOT_OURS:
            told["components"]["schemas"].pop(name, None)
        for operations in told["paths"].values():
            for operation in operations.values():
                _drop_validation_answer(operation)
        _link_jobs(told["paths"])
        told["components"]["securitySchemes"] = {"key": _KEY}
        told["security"] = [{}, {"key": []}]
        app.openapi_schema = told
    return app.openapi_schema


def _link_jobs(paths: dict[str, Any]) -> None:
    """Say that the id which one route answers is the one that the others ask for."""
    for prefix in ("", "/v2/{endpoint_id}"):
        here = {"endpoint_id": "$request.path.endpoint_id"} if prefix else {}
        links = {
            operation["operationId"]: {
                "operationId": operation["operationId"],
                "parameters": {**here, "job_id": "$response.body#/id"},
            }
            for path, operations in paths.items()
            for operation in operations.values()
            if path.startswith(f"{prefix}/") and path.endswith("/{job_id}") and path.count("/") == prefix.count("/") + 2
        }
        for name in ("run", "runsync"):
            paths[f"{prefix}/{name}"]["post"]["responses"]["200"]["links"] = links


def _drop_validation_answer(operation: dict[str, Any]) -> None:
    if _NOT_OURS[0] in json.dumps(operation["responses"].get("422", {})):
        del operation["responses"]["422"]
