"""Hostile clients, in a process of their own, which `hostile.py` starts. Prints what came of their attempts as JSON."""

import argparse
import asyncio
import base64
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from PIL import Image

from tests.pictures import repeat_last_scan, to_base64, to_png
from tests.service.attacker import ENDED, Attack, Target
from tests.service.load import EDIT

MIB = 2**20
LONG = {**EDIT, "width": 256, "height": 256, "num_inference_steps": 100, "views": "orbit:8"}
"""Its job is unfinished for many seconds."""
LARGE = {**EDIT, "width": 640, "height": 640, "views": [{"azimuth": 22.5 * view} for view in range(16)]}
"""Its pictures are noise, so that the answer has 22 MB."""


class ControlHeaders(Attack):
    """Distinct values of a header that Serve itself reads, a megabyte each."""

    keyless = True

    async def attempt(self, number: int) -> int:
        value = f"{number:08}" * (MIB // 8)
        return (await self.ask("POST", "/runsync", b"{}", {"serve_multiplexed_model_id": value})).status


class BigBodies(Attack):
    """100 MiB without a key, announced and in chunks by turns."""

    keyless = True
    num_connections = 8
    per_s = 4.0

    async def attempt(self, number: int) -> int:
        is_chunked = bool(number % 2)
        piece = bytes(MIB)

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"%x\r\n%b\r\n" % (MIB, piece) if is_chunked else piece
            yield b"0\r\n\r\n" if is_chunked else b""

        kind = {"transfer-encoding": "chunked"} if is_chunked else {"content-length": str(100 * MIB)}
        return (await self.ask("POST", "/runsync", pieces(), kind)).status


class SlowHeads(Attack):
    """Heads that arrive byte by byte and do not end."""

    keyless = True
    num_connections = 100
    per_s = 100.0

    async def attempt(self, number: int) -> str:
        reader, writer = await self.connect()
        try:
            writer.write(self.head("POST", "/runsync")[:-2])
            while not writer.transport.is_closing() and not reader.at_eof():
                writer.write(b"x")
                await asyncio.sleep(1)
        finally:
            writer.transport.abort()
        return "closed"


class Punycode(Attack):
    """Forms in a charset whose decoder takes time that is quadratic in their size."""

    async def attempt(self, number: int) -> int:
        prompt = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + b"a" * 900_000 + b"\r\n--x--\r\n"
        kind = {"content-type": "multipart/form-data; boundary=x; charset=punycode"}
        return (await self.ask("POST", "/v1/images/edits", prompt, kind)).status


class ZeroViews(Attack):
    """A list of 700,000 wrong items, or of empty ones."""

    per_s = 4.0

    async def attempt(self, number: int) -> int:
        item = ("0", "{}")[number % 2]
        views = ",".join([item] * 700_000)
        return (await self.ask("POST", "/runsync", f'{{"input":{{"prompt":"x","views":[{views}]}}}}'.encode())).status


class DeepJson(Attack):
    """Lists nested some 950 and 100,000 levels deep."""

    async def attempt(self, number: int) -> int:
        depth = (957, 100_000, 2_000_000)[number % 3]
        body = '{"input":{"seed":' + "[" * depth + "]" * depth + "}}"
        return (await self.ask("POST", "/runsync", body.encode())).status


class SlowPictures(Attack):
    """Progressive JPEGs of 4,000 scans that change nothing, by clients that leave at once."""

    num_connections = 2

    async def prepare(self) -> None:
        plain = Image.new("RGB", (2048, 2048), (90, 120, 30))
        picture = base64.b64encode(repeat_last_scan(plain, 4_000)).decode()
        self._body = json.dumps({"input": {**EDIT, "image": picture}}).encode()

    async def attempt(self, number: int) -> int | str:
        try:
            async with asyncio.timeout(2):
                return (await self.ask("POST", "/runsync", self._body)).status
        except TimeoutError:
            return "left"


class LongPolls(Attack):
    """Clients that wait for the end of one long job."""

    num_connections = 300
    per_s = 100.0

    async def prepare(self) -> None:
        self._starting = asyncio.Lock()
        self._job_id = await self.started(LONG)

    async def attempt(self, number: int) -> int:
        job_id = self._job_id
        answer = await self.ask("GET", f"/status-sync/{job_id}?wait=300000")
        if answer.status == 200 and answer.json()["status"] in ENDED:
            async with self._starting:
                if job_id == self._job_id:
                    self._job_id = await self.started(LONG)
        return answer.status


class StalledUploads(Attack):
    """Bodies that begin and do not go on."""

    num_connections = 300
    per_s = 100.0
    announced_bytes = MIB
    sent_bytes = 1_000

    async def attempt(self, number: int) -> int:
        async def pieces() -> AsyncIterator[bytes]:
            yield b'{"input":{"image":"' + b"A" * self.sent_bytes
            await asyncio.Event().wait()

        length = {"content-length": str(self.announced_bytes)}
        path = ("/runsync", "/v1/images/edits")[number % 2]
        return (await self.ask("POST", path, pieces(), length)).status


class StalledLargeUploads(StalledUploads):
    """Bodies that stop just before their end."""

    num_connections = 30
    per_s = 10.0
    announced_bytes = 19 * MIB
    sent_bytes = 18 * MIB


class UnreadResults(Attack):
    """Polls of one large ended job, by clients that do not read the answer."""

    num_connections = 200
    per_s = 50.0

    async def prepare(self) -> None:
        self._job_id = await self.ended(LARGE)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = urlsplit(self.target.url)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (str(address.hostname), address.port or 80))
        return await asyncio.open_connection(sock=connection, limit=1024)

    async def attempt(self, number: int) -> str:
        _, writer = await self.connect()
        try:
            writer.write(self.head("GET", f"/status-sync/{self._job_id}?wait=300000"))
            await asyncio.sleep(25)
        finally:
            writer.transport.abort()
        return "left"


class LargeStatuses(Attack):
    """Simultaneous reads of a large ended job."""

    num_connections = 40
    per_s = 40.0

    async def prepare(self) -> None:
        self._job_id = await self.ended(LARGE)

    async def attempt(self, number: int) -> int:
        return (await self.ask("GET", f"/status/{self._job_id}")).status


class NewRepeatKeys(Attack):
    """Work with ever new Idempotency-Keys and pictures of several megapixels, more than is done meanwhile."""

    num_connections = 40
    per_s = 40.0

    async def prepare(self) -> None:
        picture = to_base64(Image.effect_noise((2000, 1500), 50).convert("RGB"), "JPEG")
        self._body = {"input": {**EDIT, "image": picture, "num_inference_steps": 50}}

    async def attempt(self, number: int) -> int:
        return (await self.submit(self._body, {"idempotency-key": f"new-{number}"})).status


class RunAndCancel(Attack):
    """Jobs that are cancelled as soon as they are accepted, of small bodies with large pictures."""

    async def prepare(self) -> None:
        picture = base64.b64encode(to_png(Image.new("RGB", (1024, 1024)))).decode()
        self._body = {"input": {"image": picture, "prompt": "x", "width": 640, "height": 640}}

    async def attempt(self, number: int) -> int:
        answer = await self.post("/run", self._body)
        if answer.status == 200:
            answer = await self.ask("POST", f"/cancel/{answer.json()['id']}")
        return answer.status


class FullQueue(Attack):
    """Jobs of several seconds, as many as are accepted."""

    num_connections = 20
    per_s = 50.0

    async def attempt(self, number: int) -> int:
        return (await self.submit({"input": {**LONG, "seed": number}})).status


class StalledWebhooks(Attack):
    """Jobs whose webhooks are not answered."""

    per_s = 4.0

    async def attempt(self, number: int) -> int:
        return (await self.submit({"input": EDIT, "webhook": f"{self.target.stalling}/never"})).status


class StalledFetches(Attack):
    """Pictures from a host that does not answer."""

    num_connections = 40

    async def attempt(self, number: int) -> int:
        picture = f"{self.target.stalling}/never/{number}.png"
        path, body = ("/v1/images/edits", {"prompt": "x", "url": [picture] * 4})
        return (await self.post(path, body)).status


ATTACKS: dict[str, type[Attack]] = {
    "control-headers": ControlHeaders,
    "big-bodies": BigBodies,
    "slow-heads": SlowHeads,
    "punycode": Punycode,
    "zero-views": ZeroViews,
    "deep-json": DeepJson,
    "slow-pictures": SlowPictures,
    "long-polls": LongPolls,
    "stalled-uploads": StalledUploads,
    "stalled-large-uploads": StalledLargeUploads,
    "unread-results": UnreadResults,
    "large-statuses": LargeStatuses,
    "new-repeat-keys": NewRepeatKeys,
    "run-and-cancel": RunAndCancel,
    "full-queue": FullQueue,
    "stalled-webhooks": StalledWebhooks,
    "stalled-fetches": StalledFetches,
}


async def perform(attack: Attack, seconds: float) -> Counter[str]:
    """Prepare an attack, announce it on stdout, run it, and clean up."""
    await attack.prepare()
    print("ready", flush=True)
    outcomes = await attack.run(seconds)
    await attack.clean_up()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=ATTACKS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--stalling", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    # It stands for other machines, so it gets the time that the service leaves.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    attack = ATTACKS[options.name](Target(options.url, options.key, options.stalling))
    print(json.dumps(asyncio.run(perform(attack, options.seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
