"""The rewriter's prompt and the parser of its answer."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from serve_app.edits.camera import TRIGGER
from serve_app.edits.request import Rewrite

MAX_ANSWER_CHARS = 2000

FAILED = Rewrite(None, "the rewriter failed; the server's log has the reason")

_DECODER = json.JSONDecoder(strict=False)  # not strict: models put unescaped newlines into strings
_OBJECT_START = re.compile(r"\{(?=\s*[\"}])")
_MAX_STARTS = 64

INSTRUCTIONS = """You prepare instructions for a picture editing model. You see the user's picture or pictures, \
numbered Picture 1, Picture 2 and so on, and the user's wish. Write one instruction for the editing model.

Keep the user's intent: ask for nothing that the wish does not imply, and leave the rest of the picture alone.
Be short and concrete. If the wish is clear already, mend its grammar and nothing else.
- Adding something: give the least of kind, colour, size, pose and place that suits the scene. If no place is named, \
choose one that the composition offers.
- Replacing something: name what goes and what comes.
- Removing something: say what fills the gap only if it is not obvious.
- Lettering: keep the text to be drawn in its quotation marks, in its language and its upper and lower case.
- People keep their face, body and identity unless the wish changes them.
- Style: put it last, as a few visible traits. If another picture gives the style, describe its palette and texture in \
words.
- Several pictures: say which picture owns what you mention, as Picture 1 or Picture 2.
- A vague wish such as "make it better" becomes particular improvements of light, contrast and texture that this \
picture needs.
- Drop whatever would change nothing.
- Say nothing about the camera, the viewpoint or the angle unless the wish does.

Answer with one JSON object and nothing else: {"instruction": "..."}"""


def user_message(prompt: str) -> str:
    """The prompt as the rewriter reads it, with control tokens split so that they stay text."""
    plain = prompt.replace("<|", "< |")
    return f"The user's wish: {plain}" if plain.strip() else "The user's wish: none. Describe no change."


def conversation(prompt: str, pictures: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """The chat's messages.

    Args:
        pictures: each as a part of a message, as the model's server or processor takes it.
    """
    content: list[Mapping[str, object]] = []
    for number, picture in enumerate(pictures, start=1):
        content += [{"type": "text", "text": f"Picture {number}: "}, picture]
    content.append({"type": "text", "text": user_message(prompt)})
    return [
        {"role": "system", "content": [{"type": "text", "text": INSTRUCTIONS}]},
        {"role": "user", "content": content},
    ]


def parse_answer(answer: str) -> Rewrite:
    """The instruction of the first JSON object in the answer that has one, or the reason why there is none.

    Never raises. Tries to decode at no more than `_MAX_STARTS` positions of the answer.
    """
    if not 0 <= answer.find("{") < answer.rfind("}"):
        return Rewrite(None, "the rewriter's answer held no JSON object")
    objects = list(_objects(answer))
    if not objects:
        return Rewrite(None, "the rewriter's answer was not valid JSON")
    instruction = next((fields["instruction"] for fields in objects if "instruction" in fields), None)
    if not isinstance(instruction, str) or not instruction.strip():
        return Rewrite(None, "the rewriter's answer held no instruction")
    return _bounded(" ".join(instruction.split()))


def _objects(answer: str) -> Iterator[dict[str, object]]:
    """The valid JSON objects in a text, in the order of their first character."""
    for start in islice(_OBJECT_START.finditer(answer), _MAX_STARTS):
        try:
            yield _DECODER.raw_decode(answer, start.start())[0]
        except (ValueError, RecursionError):  # RecursionError: nested too deeply
            continue


def _bounded(instruction: str) -> Rewrite:
    if len(instruction) > MAX_ANSWER_CHARS:
        return Rewrite(None, f"the rewriter's instruction was longer than {MAX_ANSWER_CHARS} characters")
    if "<|" in instruction or TRIGGER in instruction.lower():
        return Rewrite(None, "the rewriter's instruction held control tokens")
    if any("\ud800" <= character <= "\udfff" for character in instruction):  # UTF-8 cannot encode them.
        return Rewrite(None, "the rewriter's instruction held half of a surrogate pair")
    return Rewrite(instruction)
