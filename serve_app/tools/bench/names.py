"""The names in the benchmark's results that other commands read."""

import re

STAGES = "stages of one edit"
VAE_ENCODE, TEXT_ENCODER, VAE_DECODE = "VAE encode", "text encoder", "VAE decode"
STEP = "step"

PACKED, ONE_BY_ONE = "packed", "one by one"
STEP_SECTION = re.compile(r"step of \d+ edits, (?P<tokens>\d+) picture tokens")
"""A section that `step_section` names."""

EDIT_TOKENS = "picture tokens of one edit"
"""A fact: of the edit whose stages are measured."""


def step_section(num_edits: int, num_tokens: int) -> str:
    return f"step of {num_edits} edits, {num_tokens} picture tokens"
