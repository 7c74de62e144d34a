"""The OpenAPI document of the application."""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]
"""By status, as FastAPI's parameter `responses`."""

SAMPLE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQMAAAD+wSzIAAAABlBMVEV4quZajEbiNzc0AAAAEklEQVR42mNggIL/TAxMDEwMAAch"
    "AQb/4qmaAAAAAElFTkSuQmCC"
)
"""A PNG of 8 x 8 pixels, blue over green, in base64. The documented examples send it, so they run unchanged."""

_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "Where the server asks for API keys. RunPod's clients may send the bare key, without `Bearer`.",
}
# FastAPI lists a 422 with these wherever a route has a parameter; here such requests get a 400 in the dialect's shape.
_VALIDATION_SCHEMAS = ("HTTPValidationError", "ValidationError")


def error_responses(model: type[BaseModel], *statuses: int, **fields: str) -> Responses:
    """Responses of a router or a route whose body is `model`; `fields` as in OpenAPI, such as a description.

    The first one has FastAPI list the model and the others refer to it: FastAPI makes a validator of each model of
    each route, which is most of the time in which the application is built. FastAPI names the schema after the class,
    so no other model may have its name.
    """
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    first, *others = statuses
    return {
        first: {"model": model, **fields},
        **{status: {"content": {"application/json": {"schema": schema}}, **fields} for status in others},
    }


def document(app: FastAPI) -> dict[str, Any]:
    """The document, as the routes really answer. Kept in `app.openapi_schema` after the first call."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for name in _VALIDATION_SCHEMAS:
            schema["components"]["schemas"].pop(name, None)
        for operations in schema["paths"].values():
            for operation in operations.values():
                _drop_validation_response(operation)
        _link_jobs(schema["paths"])
        schema["components"]["securitySchemes"] = {"key": _KEY}
        schema["security"] = [{}, {"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _link_jobs(paths: dict[str, Any]) -> None:
    """Link each route that takes a body and answers with a job's id to the routes `*/{job_id}` beside it."""
    for path, operations in paths.items():
        folder = path.rpartition("/")[0]
        in_path = {"endpoint_id": "$request.path.endpoint_id"} if "{endpoint_id}" in folder else {}
        links = {
            operation["operationId"]: {
                "operationId": operation["operationId"],
                "parameters": {**in_path, "job_id": "$response.body#/id"},
            }
            for other, others in paths.items()
            for operation in others.values()
            if other.endswith("/{job_id}") and other.rsplit("/", 2)[0] == folder
        }
        if links and "requestBody" in operations.get("post", {}):
            operations["post"]["responses"]["200"]["links"] = links


def _drop_validation_response(operation: dict[str, Any]) -> None:
    if _VALIDATION_SCHEMAS[0] in json.dumps(operation["responses"].get("422", {})):
        del operation["responses"]["422"]
