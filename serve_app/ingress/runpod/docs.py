"""What /docs tells of RunPod's jobs beside their fields: one example for each way of using them."""

from typing import Any

from fastapi.openapi.models import Example

from serve_app.ingress.example import PICTURE


def _example(summary: str, fields: dict[str, Any], **more: Any) -> Example:
    return Example(summary=summary, value={"input": fields, **more})


JOB_EXAMPLES: dict[str, Example] = {
    "edit": _example("One edit", {"image": PICTURE, "prompt": "Make it sunset"}),
    "camera": _example("The camera moved", {"image": PICTURE, "azimuth": 45, "elevation": 30, "distance": 1.0}),
    "views": _example("All round, one picture each", {"image": PICTURE, "views": "orbit", "elevation": 30}),
    "batch": _example(
        "A batch: each picture with its own prompt",
        {"images": [PICTURE, PICTURE], "prompt": ["Make it sunset", "Remove the car"]},
    ),
    "references": _example(
        "Several references of one edit",
        {"images": [PICTURE, PICTURE], "prompt": "Draw picture 1 in the style of picture 2"},
    ),
    "rewriting": _example("A vague wish", {"image": PICTURE, "prompt": "make it better", "rewrite_prompt": True}),
    "policy": _example(
        "Deadlines, and somebody to tell",
        {"image": PICTURE, "prompt": "Make it sunset"},
        policy={"executionTimeout": 60_000, "ttl": 600_000, "lowPriority": True},
        webhook="https://example.com/done",
    ),
}
