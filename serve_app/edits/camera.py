"""Camera poses: the 96 that the angles adapter was trained on, and their words in the prompt.

The words are from the model card of `fal/Qwen-Image-Edit-2511-Multiple-Angles-LoRA`. Synonyms turn the subject instead
of the camera, so nothing may rephrase them. An adapter with other words has a table in the settings (`CameraWords`).
"""

import re
from dataclasses import dataclass

from serve_app.config import CameraWords

TRIGGER = "<sks>"

# What looks like the trigger: any case, white space or invisible characters inside, full width, Cyrillic dze or ka,
# Greek kappa, other angle brackets.
_BLANK = r"[\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]*"
_LOOKS_LIKE = {
    "<": r"[<\uff1c\ufe64\u2039\u3008\u27e8]",
    "s": r"[s\uff53\u0455]",
    "k": r"[k\uff4b\u043a\u03ba]",
    ">": r"[>\uff1e\ufe65\u203a\u3009\u27e9]",
}
_TRIGGER_LIKE = re.compile(_BLANK.join(_LOOKS_LIKE[letter] for letter in TRIGGER), re.IGNORECASE)

AZIMUTH_WORDS = {
    0: "front view",
    45: "front-right quarter view",
    90: "right side view",
    135: "back-right quarter view",
    180: "back view",
    225: "back-left quarter view",
    270: "left side view",
    315: "front-left quarter view",
}
ELEVATION_WORDS = {
    -30: "low-angle shot",
    0: "eye-level shot",
    30: "elevated shot",
    60: "high-angle shot",
}
DISTANCE_WORDS = {
    0.6: "close-up",
    1.0: "medium shot",
    # The adapter knows three distances; 1.4 is accepted and gets the words of 1.0.
    1.4: "medium shot",
    1.8: "wide shot",
}


@dataclass(frozen=True)
class CameraPose:
    """A pose of the trained grid: azimuth and elevation in degrees, distance relative to the original picture's."""

    azimuth: int
    elevation: int
    distance: float

    @property
    def tokens(self) -> str:
        """The adapter's prompt for this pose, single spaces and no commas."""
        words = AZIMUTH_WORDS[self.azimuth], ELEVATION_WORDS[self.elevation], DISTANCE_WORDS[self.distance]
        return " ".join((TRIGGER, *words))


def snap(azimuth: float | None, elevation: float | None, distance: float | None) -> CameraPose | None:
    """The nearest trained pose, or None if all arguments are None.

    Azimuth is snapped on the circle; ties go to the smaller listed value. If one argument is set, the others default to
    0, 0 and 1.0.
    """
    if azimuth is None and elevation is None and distance is None:
        return None
    return CameraPose(
        azimuth=_nearest_on_circle(azimuth if azimuth is not None else 0.0),
        elevation=min(ELEVATION_WORDS, key=lambda listed: (abs(listed - (elevation or 0.0)), listed)),
        distance=min(DISTANCE_WORDS, key=lambda listed: (_gap(listed, 1.0 if distance is None else distance), listed)),
    )


def orbit_azimuths(num_views: int) -> list[float]:
    """Degrees of so many views all around the subject, at equal distances, beginning in front."""
    return [index * 360.0 / num_views for index in range(num_views)]


def _nearest_on_circle(azimuth: float) -> int:
    def gap(listed: int) -> float:
        around = abs(azimuth - listed) % 360.0
        return min(around, 360.0 - around)

    return min(AZIMUTH_WORDS, key=lambda listed: (gap(listed), listed))


def _gap(listed: float, distance: float) -> float:
    # In binary, 1.2 is a tie between 1.0 and 1.4 only after rounding.
    return round(abs(listed - distance), 9)


def words_of(pose: CameraPose, table: CameraWords) -> str:
    """The prompt's words for a pose.

    Raises:
        KeyError: the table lacks a part of it; the key is the part's name.
    """
    parts = {"trigger": table.trigger}
    for part in ("azimuth", "elevation", "distance"):
        words = getattr(table, part).get(getattr(pose, part))
        if words is None:
            raise KeyError(part)
        parts[part] = words
    return " ".join(filter(None, (parts[part] for part in table.order)))


def camera_prompt(pose: CameraPose | None, prompt: str, tokens: str | None = None) -> str:
    """Camera tokens, one space, the prompt. Trigger words in the client's prompt are removed, so that it cannot add
    another pose.

    Args:
        tokens: in place of the pose's own.
    """
    if pose is None:
        return prompt
    words = prompt.strip()
    while _TRIGGER_LIKE.search(words):  # removing one may form another
        words = " ".join(filter(None, map(str.strip, _TRIGGER_LIKE.split(words))))
    return f"{pose.tokens if tokens is None else tokens} {words}".strip()
