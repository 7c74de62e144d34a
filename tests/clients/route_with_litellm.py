"""An edit by LiteLLM's router: `python route_with_litellm.py CONFIG PICTURE`. Prints the answer's data as JSON.

CONFIG is a file of its proxy. As the proxy does, the call passes on each field of the client's form, numbers as text.
"""

import asyncio
import json
import sys
from io import BytesIO
from pathlib import Path

import litellm
import yaml

litellm.suppress_debug_info = True
config, picture = (Path(name) for name in sys.argv[1:])
router = litellm.Router(**yaml.safe_load(config.read_text()))
(model,) = router.get_model_names()
fields = {"azimuth": "90", "size": "64x64", "num_inference_steps": "1", "seed": "7"}
image = BytesIO(picture.read_bytes())
answer = asyncio.run(router.aimage_edit(model=model, image=[image], prompt="make it night", **fields))
print(json.dumps([each.model_dump() for each in answer.data]))
