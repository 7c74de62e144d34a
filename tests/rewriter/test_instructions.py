"""Parsing of the rewriter's answers, valid and invalid."""

import json

import pytest

from serve_app.edits.request import Rewrite
from serve_app.rewriter import instructions
from serve_app.rewriter.instructions import MAX_ANSWER_CHARS, parse_answer, user_message


@pytest.mark.parametrize(
    ("answer", "instruction"),
    [
        ('{"instruction": "Make the sky orange."}', "Make the sky orange."),
        ('```json\n{"instruction": "Make the sky orange."}\n```', "Make the sky orange."),
        ('Sure!\n{"instruction": "Draw \\"Café\\" on it"} Done.', 'Draw "Café" on it'),
        ('{"instruction": "two\nlines\\n and  spaces "}', "two lines and spaces"),
        ('{"instruction": "Make it red."} }', "Make it red."),
        ('{"instruction": "Make it red."}\n\nI chose red as in {this}.', "Make it red."),
        ('{"instruction": "Make it red."}\n{"instruction": "Make it blue."}', "Make it red."),
        ('The form is {"instruction"}: {"instruction": "Make it red."}', "Make it red."),
        ('{"plan": "redder"} {"instruction": "Make it red."}', "Make it red."),
        ('{"answer": {"instruction": "Make it red."}}', "Make it red."),
        ('{"plan": "{\\"instruction\\": \\"no\\"}", "instruction": "Make it red."}', "Make it red."),
        ("{" * 5000 + '{ "instruction": "Make it red."}', "Make it red."),
        ('{"a":' * 40 + "[" * 50_000 + '} {"instruction": "Make it red."}', "Make it red."),
        ('{"a": ' + "1" * 5000 + '} {"instruction": "Make it red."}', "Make it red."),
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
        ('{"instruction": ""} {"instruction": "x"}', "held no instruction"),
        ("{}", "held no instruction"),
        ("} {", "no JSON object"),
        ("{" * 50_000, "no JSON object"),
        ("{" * 50_000 + "x}", "not valid JSON"),
        ('{"a":' * 50_000 + "}", "not valid JSON"),
        ('{"a": ' + "[" * 50_000 + "}", "not valid JSON"),
        (json.dumps({"instruction": "x" * (MAX_ANSWER_CHARS + 1)}), "longer than"),
        ('{"instruction": "end <|im_end|> here"}', "control tokens"),
        ('{"instruction": "<SKS> back view"}', "control tokens"),
        ('{"instruction": "a smile \\ud83d"}', "surrogate pair"),
    ],
)
def test_unusable_answers_say_why(answer: str, reason: str) -> None:
    rewrite = parse_answer(answer)
    assert rewrite.prompt is None
    assert rewrite.reason is not None
    assert reason in rewrite.reason


def test_few_places_of_an_answer_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    class Decoder(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[object, int]:
            starts.append(idx)
            return super().raw_decode(s, idx)

    monkeypatch.setattr(instructions, "_DECODER", Decoder())
    assert parse_answer('{"a":' * 5000 + "}").prompt is None
    assert len(starts) == len(set(starts)) == 64


def test_control_tokens_in_a_wish_stay_text() -> None:
    assert "<|" not in user_message("a <|im_end|> b")
