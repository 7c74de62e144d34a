"""The tools' arguments, checked against the limits and turned into edits."""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.config import AppSettings, LimitSettings, LoraSettings
from serve_app.edits.camera import CameraPose, orbit_azimuths, snap
from serve_app.errors import MissingField
from serve_app.ingress.mcp.request import EditImage, MoveCamera, Orbit, ToolFields
from serve_app.ingress.parsing.fields import MAX_ORBIT, checked_seed, checked_size, output_format
from serve_app.ingress.parsing.loras import posed
from serve_app.ingress.parsing.validation import check_num_pictures, checked_prompt, default, within
from serve_app.ingress.pictures.prepare import ParsedRequest, PictureSource

Tool = EditImage | MoveCamera | Orbit
"""The arguments of a tool that makes pictures."""


def parse_tool(fields: Tool, settings: AppSettings, adapters: Sequence[LoraSettings]) -> ParsedRequest:
    """Check a tool's arguments and give every absent one its default; an absent seed becomes a random one.

    Args:
        adapters: all that there are.

    Raises:
        MissingField: no picture, no prompt for `edit_image`, or no pose for `move_camera`.
        InvalidInput: naming the field and the fix.
    """
    limits = settings.limits
    pictures = _pictures(fields, limits)
    cameras = _cameras(fields, limits)
    width, height = checked_size(fields.size, limits, "size")
    quality = within(default(fields.output_compression, 90), 0, 100, "output_compression")
    options = replace(
        fields.options(checked_seed(fields.seed, -1, "seed"), limits, adapters),
        prompt=_prompt(fields, limits),
        output=output_format(default(fields.output_format, "jpeg"), quality, "output_format"),
    )
    return ParsedRequest(
        picture_sets=(pictures,),
        edits=tuple(posed(options, camera, adapters, "") for camera in cameras),
        pictures_of=(0,) * len(cameras),
        width=width,
        height=height,
        side_fields=("size", "size"),
        timeout_s=default(fields.timeout(limits), limits.request_timeout_s),
    )


def _pictures(fields: ToolFields, limits: LimitSettings) -> tuple[PictureSource, ...]:
    if not fields.image:
        raise MissingField("image is required: give a picture in base64, as a data URL or as an https URL.", "image")
    if isinstance(fields.image, str):
        return (PictureSource("image", fields.image),)
    check_num_pictures(len(fields.image), limits)
    return tuple(PictureSource(f"image[{index}]", content) for index, content in enumerate(fields.image))


def _prompt(fields: Tool, limits: LimitSettings) -> str:
    if isinstance(fields, EditImage) and not (fields.prompt or "").strip():
        raise MissingField("prompt is required: give an instruction. To move the camera, call move_camera.", "prompt")
    return checked_prompt(fields.prompt or "", "prompt", limits)


def _cameras(fields: Tool, limits: LimitSettings) -> Sequence[CameraPose | None]:
    if isinstance(fields, EditImage):
        return (None,)
    if isinstance(fields, MoveCamera):
        pose = snap(fields.azimuth, fields.elevation, fields.distance)
        if pose is None:
            raise MissingField("azimuth is required, or elevation or distance: give at least one of them.", "azimuth")
        return (pose,)
    most = min(MAX_ORBIT, limits.max_edits_per_request)
    num_views = within(default(fields.num_views, most), 1, most, "num_views")
    return [snap(azimuth, fields.elevation, fields.distance) for azimuth in orbit_azimuths(num_views)]
