"""Notifying a webhook of a job's end."""

import asyncio
import logging

from serve_app.config import JobSettings
from serve_app.edits.outbound import Outbound, Unreachable

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 3

_HEADERS = {"content-type": "application/json", "user-agent": "qwen-camera-edit"}


async def notify_webhook(job_id: str, url: str, body: bytes, settings: JobSettings) -> bool:
    """POST a JSON body; anything but 200 is tried again, three times in all. Whether it was taken.

    The URL is held against the settings once more: they may be others than when the job was accepted.
    """
    outbound = Outbound(settings.webhook_origins, settings.webhook_private_networks, settings.webhook_timeout_s)
    for attempt in range(NUM_ATTEMPTS):
        if attempt:
            await asyncio.sleep(settings.webhook_gap_s)
        if await _taken(job_id, url, body, outbound):
            return True
    logger.warning("the webhook of job %s did not take its end", job_id)
    return False


async def _taken(job_id: str, url: str, body: bytes, outbound: Outbound) -> bool:
    try:
        async with outbound.exchange("POST", url, _HEADERS, body) as response:
            return response.status_code == 200
    except Unreachable as problem:
        logger.info("the webhook of job %s could not be reached: %s", job_id, problem)
        return False
