"""One edit, and one that is refused, with LiteLLM: `python edit_with_litellm.py ADDRESS KEY PICTURE`.

Prints the answer's data as JSON, then the error's class and message.
"""

import json
import sys
from pathlib import Path

import litellm

litellm.suppress_debug_info = True
address, key, picture = sys.argv[1:]
connection = {"api_base": f"{address}/v1", "api_key": key}
options = {
    "size": "64x64",
    "n": 1,
    "user": "somebody",
    "extra_body": {"azimuth": 90, "num_inference_steps": 1, "seed": 7},
}

with Path(picture).open("rb") as file:
    answer = litellm.image_edit(
        model="openai/Qwen/Qwen-Image-Edit-2511", image=file, prompt="make it sunset", **options, **connection
    )
print(json.dumps([each.model_dump() for each in answer.data]))

try:
    litellm.image_edit(
        model="openai/Qwen/Qwen-Image-Edit-2511",
        image=Path(picture).read_bytes(),
        prompt="make it sunset",
        background="transparent",
        **connection,
    )
except litellm.BadRequestError as problem:
    print("BadRequestError", problem.message.replace("\n", " "))
