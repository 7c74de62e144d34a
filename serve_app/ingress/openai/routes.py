"""OpenAI's routes."""

import time

from fastapi import APIRouter, Request, Response

from serve_app.errors import ModelNotFound
from serve_app.ingress.backend import Backend
from serve_app.ingress.edit_fields import RepeatKeyHeader
from serve_app.ingress.openai.answers import OpenAIError, OpenAIImages, OpenAIModel, OpenAIModels
from serve_app.ingress.openai.docs import EDIT_REQUEST, EDIT_RESPONSE
from serve_app.ingress.openai.edits import OpenAIEdits
from serve_app.ingress.validation import echo

_ERRORS = {status: {"model": OpenAIError} for status in (400, 401, 404, 413, 422, 429, 500, 503, 504)}


def openai_router(backend: Backend) -> APIRouter:
    """All routes of the dialect, without a prefix."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=_ERRORS)  # type: ignore[arg-type]
    _add_edits(router, OpenAIEdits(backend))
    _add_models(router, backend.settings.served_model_names)
    return router


def _add_edits(router: APIRouter, edits: OpenAIEdits) -> None:
    @router.post(
        "/images/edits",
        response_model=OpenAIImages,
        responses={200: EDIT_RESPONSE},
        openapi_extra={"requestBody": EDIT_REQUEST},
    )
    async def edit_images(request: Request, repeat_key: RepeatKeyHeader = None) -> Response:
        """Edit pictures: several variants or views of one upload, whole or as a stream."""
        return await edits.answer(request, repeat_key)


def _add_models(router: APIRouter, names: tuple[str, ...]) -> None:
    models = {name: OpenAIModel(id=name, created=int(time.time())) for name in names}

    @router.get("/models")
    async def list_models() -> OpenAIModels:
        """The names by which clients may call the model."""
        return OpenAIModels(data=list(models.values()))

    @router.get("/models/{model:path}")
    async def retrieve_model(model: str) -> OpenAIModel:
        """One of them."""
        if model not in models:
            raise ModelNotFound(f"There is no model {echo(model)} here; GET /v1/models lists what there is.", "model")
        return models[model]
