"""What /docs tells of an edit's bodies, which the route reads by itself."""

from typing import Any

from pydantic import BaseModel

from serve_app.ingress.example import PICTURE
from serve_app.ingress.openai.request import OpenAIForm, OpenAIJson

_DATA_URL = f"data:image/png;base64,{PICTURE}"
_PICTURE = {"images": [{"image_url": _DATA_URL}]}

_OWN_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("One picture", {"prompt": "Make it sunset", "size": "1024x1024", "output_format": "png"}),
    "camera": ("The camera moved", {"azimuth": 45, "elevation": 30, "distance": 1.0, "seed": 42}),
    "views": ("All round, one picture each", {"views": "orbit", "elevation": 30}),
    "stream": ("A stream with previews", {"prompt": "Make it sunset", "stream": True, "partial_images": 2}),
}


def _examples(pictures: dict[str, Any], several: dict[str, Any]) -> dict[str, Any]:
    """The same requests with pictures as an encoding writes them."""
    examples = {
        name: {"summary": summary, "value": {**pictures, **fields}} for name, (summary, fields) in _OWN_FIELDS.items()
    }
    both = {**several, "prompt": "Let the bears of both pictures walk together."}
    return {**examples, "several": {"summary": "Several references", "value": both}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


EDIT_REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": _schema(OpenAIForm),
            "examples": _examples({"image": ["@bear.png"]}, {"image": ["@bear.png"], "url": [_DATA_URL]}),
        },
        "application/json": {
            "schema": _schema(OpenAIJson),
            "examples": _examples(_PICTURE, {"images": 2 * _PICTURE["images"]}),
        },
    },
}

_STREAM = """event: image_edit.partial_image
data: {"type": "image_edit.partial_image", "b64_json": "…", "created_at": 1767225600, "size": "1024x1024", \
"quality": "auto", "background": "opaque", "output_format": "png", "partial_image_index": 0}

event: image_edit.completed
data: {"type": "image_edit.completed", "b64_json": "…", "created_at": 1767225602, "size": "1024x1024", \
"quality": "auto", "background": "opaque", "output_format": "png", "revised_prompt": "Make it sunset", "seed": 42, \
"usage": {"input_tokens": 4420, "input_tokens_details": {"image_tokens": 4096, "text_tokens": 324}, \
"output_tokens": 4096, "total_tokens": 8516}}

"""

_EVENT = {
    "description": "One event; its data is JSON.",
    "type": "object",
    "required": ["data"],
    "properties": {
        "event": {"enum": ["image_edit.partial_image", "image_edit.completed"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}

EDIT_RESPONSE: dict[str, Any] = {
    "description": "The pictures; or, with `stream`, events of the types image_edit.partial_image and "
    "image_edit.completed. An error in mid-stream is a last event with `error` in its data.",
    "content": {"text/event-stream": {"schema": _EVENT, "example": _STREAM}},
}
