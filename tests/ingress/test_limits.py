"""Every limit is documented with its default, and is a 4xx beyond its value only."""

from typing import Any

import pytest

from serve_app.config import AppSettings, JobSettings, LimitSettings
from serve_app.edits.containers import MAX_SCANS
from tests.ingress.openai_harness import PNG, WIDE, Part, error_of, harness
from tests.pictures import progressive_jpeg

SQUARE: Part = ("image", PNG)
PROMPT: Part = ("prompt", "turn")
SLOW = progressive_jpeg(1500, MAX_SCANS)

# For each limit: what is sent, the value that lets it pass, the one that does not, the status then.
LIMITS: dict[str, tuple[list[Part], Any, Any, int]] = {
    "max_body_bytes": ([SQUARE, PROMPT], 100_000, 1_000, 413),
    "max_picture_bytes": ([SQUARE, PROMPT], len(PNG), len(PNG) - 1, 400),
    "picture_kinds": ([SQUARE, PROMPT], ("png",), ("jpeg",), 400),
    "max_picture_px": ([SQUARE, PROMPT], 64 * 64, 64 * 64 - 1, 400),
    "max_aspect_ratio": ([("image", WIDE), PROMPT], 1.5, 1.4, 400),
    "max_pictures_per_edit": ([SQUARE, SQUARE, PROMPT], 2, 1, 400),
    "max_edits_per_request": ([SQUARE, PROMPT, ("n", "2")], 2, 1, 400),
    "max_prompt_chars": ([SQUARE, PROMPT], 4, 3, 400),
    "max_inference_steps": ([SQUARE, PROMPT, ("num_inference_steps", "9")], 9, 8, 400),
    "max_guidance_scale": ([SQUARE, PROMPT, ("true_cfg_scale", "3")], 3.0, 2.5, 400),
    "request_timeout_s": ([SQUARE, PROMPT, ("timeout_s", "5")], 5.0, 4.9, 400),
    "min_side_px": ([SQUARE, PROMPT, ("size", "64x96")], 64, 65, 400),
    "decode_timeout_s": ([("image", SLOW), PROMPT], 60.0, 0.01, 400),
    "max_side_px": ([SQUARE, PROMPT, ("size", "64x96")], 96, 95, 400),
}

SHARED = {"max_bodies_bytes", "max_requests_per_key", "max_work_per_s_per_key"}
"""Of several requests; `test_transfer.py` and `test_pace.py` try them."""


@pytest.mark.parametrize("name", LIMITS)
def test_both_sides_of_each_limit(tiny_settings: AppSettings, name: str) -> None:
    parts, enough, too_little, status = LIMITS[name]

    def ask(value: Any) -> Any:
        limits = tiny_settings.limits.model_copy(update={name: value})
        return harness(tiny_settings.model_copy(update={"limits": limits})).form(*parts)

    assert ask(enough).status_code == 200
    assert error_of(ask(too_little), status)["message"]


def test_every_limit_is_tried_and_documented_with_its_default() -> None:
    assert LIMITS.keys() == LimitSettings.model_fields.keys() - {"num_decode_threads", *SHARED}
    for name, field in LimitSettings.model_fields.items():
        assert "default " in (field.description or ""), name
    for name in ("max_active_jobs", "max_queued_jobs", "max_store_bytes", "max_store_bytes_per_key"):
        assert JobSettings.model_fields[name].description
