"""The fields of an edit that both dialects have, under the same names."""

from typing import Annotated

from fastapi import Header
from pydantic import Field

from serve_app.config import LimitSettings
from serve_app.edits.request import EditOptions, Sampling
from serve_app.ingress.asked import checked_prompt, default, within
from serve_app.ingress.fields import Flag, Number, Text, Whole
from serve_app.ingress.views import CameraFields, Views

RepeatKeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key with the same body is the same job, however often it is sent. It goes on when the "
        "client leaves.",
    ),
]

MIN_TIMEOUT_S = 0.1


class EditFields(CameraFields):
    """How to edit. Absent and null mean the same."""

    views: Views = Field(
        None,
        description="Several camera poses of one upload, one picture each, streamed as they are done: a list of poses "
        '(in a form: as JSON text), "orbit" (all eight azimuths) or "orbit:N". What a pose leaves out comes from '
        "elevation and distance.",
    )
    rewrite_prompt: Flag = Field(
        None, description="Let the rewriter turn a vague instruction into a precise one. Default false."
    )
    num_inference_steps: Whole = Field(None, description="Default 4; 4 to 8 suit the Lightning adapter.")
    guidance_scale: Number = Field(None, description="Classifier-free guidance, active above 1. Default 1.0.")
    true_cfg_scale: Number = Field(None, description="The same knob by the model's own name; it wins.")
    negative_prompt: Text = Field(None, description="What guidance steers away from. Default one space.")
    timeout_s: Number = Field(
        None,
        description="Seconds from the request's arrival after which it is given up and answered with 504. At most, and "
        "by default, the server's limits.request_timeout_s (600).",
    )

    def timeout(self, limits: LimitSettings, prefix: str = "") -> float | None:
        """Seconds that the request may take, as the client wants it, or None.

        Raises:
            InvalidInput: it is out of bounds; `prefix` stands before its field's name.
        """
        if self.timeout_s is None:
            return None
        return within(self.timeout_s, MIN_TIMEOUT_S, limits.request_timeout_s, f"{prefix}timeout_s")

    def options(self, seed: int, limits: LimitSettings, prefix: str = "") -> EditOptions:
        """How to draw with this seed, as far as both dialects have the same fields for it.

        Raises:
            InvalidInput: a value is out of bounds; `prefix` stands before its field's name.
        """
        guidance_field = "guidance_scale" if self.true_cfg_scale is None else "true_cfg_scale"
        guidance = default(getattr(self, guidance_field), 1.0)
        steps_field = f"{prefix}num_inference_steps"
        sampling = Sampling(
            seed=seed,
            num_inference_steps=within(
                default(self.num_inference_steps, 4), 1, limits.max_inference_steps, steps_field
            ),
            true_cfg_scale=within(guidance, 0.0, limits.max_guidance_scale, f"{prefix}{guidance_field}"),
            negative_prompt=checked_prompt(default(self.negative_prompt, " "), f"{prefix}negative_prompt", limits),
        )
        return EditOptions(rewrite_prompt=bool(self.rewrite_prompt), sampling=sampling)
