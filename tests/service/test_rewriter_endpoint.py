"""Prompts that an OpenAI-compatible server rewrites, called by the replicas of Ingress and Jobs."""

import json

import requests

from tests.service.conftest import OnRedis
from tests.service.load import EDIT
from tests.service.receiver import COMPLETIONS, REWRITTEN, Receiver
from tests.service.test_peer_faults import PNG

WISH = "make it better"


def test_a_job_is_drawn_by_the_rewritten_prompt(on_redis: OnRedis, receiver: Receiver) -> None:
    output = on_redis.service.run(**{**EDIT, "prompt": WISH, "rewrite_prompt": True})["output"]
    assert output["final_prompts"] == [REWRITTEN]
    assert WISH in json.dumps(receiver.bodies(COMPLETIONS, 1)[-1])


def test_so_is_an_edit_without_a_job(on_redis: OnRedis) -> None:
    fields = {"prompt": WISH, "rewrite_prompt": "true", "num_inference_steps": "1"}
    response = requests.post(
        f"{on_redis.service.url}/v1/images/edits", data=fields, files={"image": ("a.png", PNG)}, timeout=60
    )
    assert response.status_code == 200, response.text
    assert response.json()["data"][0]["revised_prompt"] == REWRITTEN
