"""OpenAI's dialect on the wire, requests: the fields of an edit, and in JSON also its pictures."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from serve_app.errors import listed
from serve_app.ingress.parsing.fields import (
    FORMATS,
    EditFields,
    Flag,
    Hint,
    Name,
    StrictModel,
    Text,
    TextOrTexts,
    Whole,
    list_like,
    refused,
)
from serve_app.ingress.parsing.validation import wrong


def _one_of(*names: str) -> tuple[BeforeValidator, WithJsonSchema]:
    """The check that a field is absent or one of these names, and its schema."""

    def check(value: object) -> object:
        if value is None or value in names:
            return value
        raise wrong(listed(names), value)

    return BeforeValidator(check), WithJsonSchema({"anyOf": [{"enum": names, "type": "string"}, {"type": "null"}]})


def _opaque(value: object) -> object:
    if value == "transparent":
        raise PydanticCustomError(
            "unsupported", "cannot be transparent: the model draws opaque pictures. Use auto or opaque"
        )
    return value


_NO_OTHER_FORMAT = refused("is not supported: the model draws single pictures. Leave it out and use png, jpeg or webp")


class OpenAIEdit(EditFields):
    """How to edit. Absent, null and, in a form, empty mean the same."""

    prompt: Text = Field(None, description="The instruction. Required, unless a camera field or views are given.")
    model: Name = Field(None, description="One of the names that GET /v1/models lists.")
    n: Whole = Field(
        None, description="Number of variants, 1 to 10; their seeds are seed, seed + 1 and so on. Default 1."
    )
    size: Name = Field(
        None, description="WIDTHxHEIGHT in pixels, or auto: about 1 megapixel with the first picture's aspect."
    )
    response_format: Annotated[str | None, *_one_of("b64_json")] = Field(None, description="b64_json only.")
    output_format: Name = Field(None, description=f"{listed(FORMATS)}. Default png.")
    output_compression: Whole = Field(
        None, description="0 to 100, the quality of lossy formats; png is always lossless. Default 100."
    )
    background: Annotated[str | None, *_one_of("auto", "opaque"), BeforeValidator(_opaque)] = Field(
        None, description="auto or opaque; the model draws opaque pictures."
    )
    quality: Annotated[str | None, *_one_of("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd")] = Field(
        None, description="Accepted and echoed; num_inference_steps is what sets the effort here."
    )
    input_fidelity: Annotated[str | None, *_one_of("high", "low")] = Field(
        None, description="Accepted; the model always sees the pictures in full."
    )
    user: Hint = None
    stream: Flag = Field(None, description="Answer with server-sent events. Default false.")
    partial_images: Whole = Field(
        None,
        description="Previews of each picture in a stream, 0 to 3, as far as the steps allow; with an Idempotency-Key "
        "none. Default 0.",
    )
    mask: Annotated[Any, refused("is not supported: leave it out and describe the region in the prompt instead")] = (
        Field(None, description="Refused: describe the region in the prompt.")
    )
    seed: Whole = Field(
        None,
        description="Same seed, same picture. Default, and for -1: a random one, which the response returns.",
    )
    # Of openai 3.52's ImageEditParams and ImageGenerateParams.
    complexity: Hint = None
    moderation: Hint = None
    safety_identifier: Hint = None
    markup: Annotated[Any, refused("is not supported: leave it out and describe the change in the prompt instead")] = (
        Field(None, description="Refused: describe the change in the prompt.")
    )
    frame_count: Annotated[Any, _NO_OTHER_FORMAT] = Field(None, description="Refused: there is no GIF output.")
    frame_duration_ms: Annotated[Any, _NO_OTHER_FORMAT] = Field(None, description="Refused: there is no GIF output.")
    svg: Annotated[Any, _NO_OTHER_FORMAT] = Field(None, description="Refused: there is no SVG output.")


_FILES: dict[str, Any] = {"type": "array", "items": {"type": "string", "format": "binary"}}
_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}


class OpenAIForm(OpenAIEdit):
    """An edit as a form. Its pictures, parts that may repeat, are read separately; here they are declared for the
    docs."""

    image: Annotated[None, WithJsonSchema(_FILES)] = Field(
        None,
        description="The pictures: PNG, JPEG, WebP, GIF, HEIC or AVIF files; also texts as in `url`. `image[]` is the "
        "same.",
    )
    url: Annotated[None, WithJsonSchema(_TEXTS)] = Field(
        None, description="Pictures as data URLs, or as http(s) URLs that the server may fetch. `url[]` is the same."
    )


class OpenAIImageUrl(StrictModel):
    image_url: str = Field(description="A data URL, or an http(s) URL that the server may fetch.")


_IMAGES: dict[str, Any] = {"anyOf": [{"type": "array", "items": OpenAIImageUrl.model_json_schema()}, {"type": "null"}]}


class OpenAIJson(OpenAIEdit):
    """An edit as JSON. At least one of images, image and url is required; all are used, in order."""

    images: Annotated[list[OpenAIImageUrl] | None, list_like('[{"image_url": "…"}]'), WithJsonSchema(_IMAGES)] = Field(
        None, description="The pictures as OpenAI's JSON has them."
    )
    image: TextOrTexts = Field(None, description="A data URL, base64 or an http(s) URL; or a list of them.")
    url: TextOrTexts = Field(None, description="The same.")

    def texts(self, name: str) -> list[str]:
        """The pictures in one of those three fields."""
        match getattr(self, name):
            case None:
                return []
            case str(text):
                return [text]
            case several:
                return [each if isinstance(each, str) else each.image_url for each in several]
