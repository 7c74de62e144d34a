"""What an edit costs an editor, from results of `camera-edit bench engine`, measured or computed."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.errors import UsageError
from serve_app.tools.bench.names import (
    EDIT_TOKENS,
    PACKED,
    STAGES,
    STEP,
    STEP_SECTION,
    TEXT_ENCODER,
    VAE_DECODE,
    VAE_ENCODE,
)

MEGAPIXEL_TOKENS = 4096
_HEAD = re.compile(r"^Stages, 1 megapixel, (\d) references?", re.MULTILINE)
_NAMES = (VAE_ENCODE, TEXT_ENCODER, VAE_DECODE)
_COMPUTED = 6  # of a stage's numbers, the column "computed"; measured times follow two columns later


@dataclass(frozen=True)
class Costs:
    """Seconds of the engine's thread, which does one thing at a time. Tokens are of pictures.

    Attributes:
        source: where the figures are from.
        step_s: of each step, whatever it packs.
        step_token_s, step_square_s: of each sequence in a step, for its tokens and for their square (attention).
        encode_token_s: of the VAE, for each token of a reference.
        text_s: of the text encoder, for each prompt.
        decode_token_s: of the VAE, for each token of the output.
    """

    source: str
    step_s: float
    step_token_s: float
    step_square_s: float
    encode_token_s: float
    text_s: float
    decode_token_s: float

    def step(self, tokens: Iterable[int]) -> float:
        """Of one step of sequences with so many tokens each. A guided edit has two, which do not attend to each
        other."""
        return self.step_s + sum(self.step_token_s * each + self.step_square_s * each**2 for each in tokens)

    def times(self, factor: float) -> "Costs":
        """All costs multiplied, as on a machine that does other work besides."""
        changed = {field.name: factor * getattr(self, field.name) for field in fields(self) if field.name != "source"}
        return replace(self, **changed)


def read_costs(file: Path, step: str) -> Costs:
    """The costs in the JSON of `bench engine` or in the text of `bench engine --paper`.

    Args:
        step: which computed step to take: `bf16, compiled` and so on. Measured ones are of one kind.

    Raises:
        UsageError: the file holds neither.
        OSError: it cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("{"):
            return measured_costs(json.loads(text))
        return computed_costs(text, step)
    except (KeyError, IndexError, ValueError, TypeError) as problem:
        reason = f"{type(problem).__name__}: {problem}"
        raise UsageError(f"{file} holds no stages of camera-edit bench engine ({reason}).") from problem


def measured_costs(document: Mapping[str, Any]) -> Costs:
    """From measured steps: a straight line through the packed ones. Half of the tokens of the edit whose stages are
    measured are its reference's. Results without their number have as many as a step of that time on the line."""
    rows = [row for row in document["rows"] if row["name"] == PACKED]
    found = [(STEP_SECTION.fullmatch(row["section"]), row["median_s"]) for row in rows]
    points = [(int(match["tokens"]), seconds) for match, seconds in found if match is not None]
    token_s, fixed_s = _line(points)
    stages = {row["name"]: row["median_s"] for row in document["rows"] if row["section"] == STAGES}
    tokens = document["facts"].get(EDIT_TOKENS) or max(points[0][0], (stages[STEP] - fixed_s) / token_s)
    return Costs(
        source=f"measured, {document['device']}, {document['config']}",
        step_s=fixed_s,
        step_token_s=token_s,
        step_square_s=0.0,
        encode_token_s=2 * stages[VAE_ENCODE] / tokens,
        text_s=stages[TEXT_ENCODER],
        decode_token_s=2 * stages[VAE_DECODE] / tokens,
    )


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Slope and intercept, which is not negative."""
    tokens, seconds = np.array(points, dtype=float).T
    slope, intercept = np.polyfit(tokens, seconds, 1)
    return (float(slope), float(intercept)) if intercept >= 0 else (float(seconds @ tokens / (tokens @ tokens)), 0.0)


def computed_costs(text: str, step: str) -> Costs:
    """From the tables of stages for one megapixel with 1 and with 3 references, which give the linear and the square
    part of a step."""
    tables = {int(match[1]): _stages_ms(text[match.end() :]) for match in _HEAD.finditer(text)}
    step_ms = {number: stages[f"step, {step}"] for number, stages in tables.items()}
    (few, few_ms), (many, many_ms) = ((MEGAPIXEL_TOKENS * (1 + number), step_ms[number]) for number in (1, 3))
    square_ms = (many_ms / many - few_ms / few) / (many - few)
    one = tables[1]
    return Costs(
        source=f"computed, {text.partition(':')[0]}, {step}",
        step_s=0.0,
        step_token_s=(few_ms / few - square_ms * few) / 1000,
        step_square_s=square_ms / 1000,
        encode_token_s=one[VAE_ENCODE] / MEGAPIXEL_TOKENS / 1000,
        text_s=one[TEXT_ENCODER] / 1000,
        decode_token_s=one[VAE_DECODE] / MEGAPIXEL_TOKENS / 1000,
    )


def _stages_ms(text: str) -> dict[str, float]:
    """The computed milliseconds of the stages in the first table, or the measured ones where there are some."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = re.match(r"\s*(step, [\w, ]+?|VAE \w+|text encoder)\s{2,}([\d. ]+)$", line)
        if match is not None and match[1] not in found:
            numbers = [float(number) for number in match[2].split()]
            found[match[1]] = numbers[_COMPUTED + 2] if len(numbers) > _COMPUTED + 2 else numbers[_COMPUTED]
        if all(name in found for name in _NAMES):
            break
    return found
