"""The rewriter's answers, good and bad."""

import json

import pytest

from serve_app.edits.request import Rewrite
from serve_app.rewriter.instructions import MAX_ANSWER_CHARS, parse_answer, user_message


@pytest.mark.parametrize(
    ("answer", "instruction"),
    [
        ('{"instruction": "Make the sky orange."}', "Make the sky orange."),
        ('```json\n{"instruction": "Make the sky orange."}\n```', "Make the sky orange."),
        ('Sure!\n{"instruction": "Draw \\"Café\\" on it"} Done.', 'Draw "Café" on it'),
        ('{"instruction": "two\nlines\\n and  spaces "}', "two lines and spaces"),
    ],
)
def test_good_answers(answer: str, instruction: str) -> None:
    assert parse_answer(answer) == Rewrite(instruction)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no JSON object"),
        ("Make the sky orange.", "no JSON object"),
        ('{"instruction": "cut off', "no JSON object"),
        ('{"instruction": }', "not valid JSON"),
        ('{"rewritten": "x"}', "held no instruction"),
        ('{"instruction": ""}', "held no instruction"),
        ('{"instruction": ["x"]}', "held no instruction"),
        (json.dumps({"instruction": "x" * (MAX_ANSWER_CHARS + 1)}), "longer than"),
        ('{"instruction": "end <|im_end|> here"}', "control tokens"),
        ('{"instruction": "<SKS> back view"}', "control tokens"),
    ],
)
def test_unusable_answers_say_why(answer: str, reason: str) -> None:
    rewrite = parse_answer(answer)
    assert rewrite.prompt is None
    assert rewrite.reason is not None
    assert reason in rewrite.reason


def test_control_tokens_in_a_wish_stay_text() -> None:
    assert "<|" not in user_message("a <|im_end|> b")
