"""The edits that the benchmark draws."""

from dataclasses import dataclass

from PIL import Image

from serve_app.config import SizeSettings
from serve_app.edits.camera import CameraPose, camera_prompt
from serve_app.edits.images import prepare
from serve_app.edits.request import EditRequest, Pictures, Sampling
from serve_app.edits.sizes import OutputSize, Size, fit_area
from serve_app.tools.bench.pictures import MORNING, NIGHT, draw_scene

ORBIT = (0, 45, 90, 135, 180, 225, 270, 315)
PROMPT = "Change the time of day to sunset with warm light"


@dataclass(frozen=True)
class Order:
    """An edit with its pictures, both the originals and the model's prepared inputs."""

    request: EditRequest
    originals: tuple[Image.Image, ...]
    pictures: Pictures


def make_order(
    originals: tuple[Image.Image, ...], size: Size, sampling: Sampling, sizes: SizeSettings, prompt: str = PROMPT
) -> Order:
    request = EditRequest(request_id="bench", prompt=prompt, sampling=sampling, size=OutputSize(size, size))
    return Order(request, originals, tuple(prepare(picture, sizes) for picture in originals))


def plain_order(sizes: SizeSettings, num_references: int = 1) -> Order:
    """One edit at the configured output area, 4 steps, no guidance."""
    scenes = (draw_scene(MORNING, 640, 640), draw_scene(NIGHT, 512, 512), draw_scene(MORNING, 512, 512))
    return make_order(scenes[:num_references], fit_area(sizes.output_area_px, 1.0), Sampling(), sizes)


def unlike_orders(sizes: SizeSettings) -> list[Order]:
    """Eight small edits that differ in aspect, prompt, step count and seed: a quarter of the configured areas."""
    small = SizeSettings(
        output_area_px=max(1024, sizes.output_area_px // 4),
        vae_area_px=max(1024, sizes.vae_area_px // 4),
        condition_area_px=sizes.condition_area_px,
    )
    aspects = ((4, 3), (1, 1), (3, 4), (16, 9))
    orders = []
    for number in range(8):
        width, height = aspects[number % len(aspects)]
        scene = draw_scene(MORNING if number % 2 else NIGHT, 80 * width, 80 * height)
        sampling = Sampling(seed=number, num_inference_steps=(4, 5, 6)[number % 3])
        size = fit_area(small.output_area_px, width / height)
        orders.append(make_order((scene,), size, sampling, small, f"{PROMPT}, " * (1 + number % 4)))
    return orders


def orbit_orders(sizes: SizeSettings) -> list[Order]:
    """Eight views of one picture, all around its subject."""
    plain = plain_order(sizes)
    poses = (CameraPose(azimuth, 0, 1.0) for azimuth in ORBIT)
    return [
        make_order(plain.originals, plain.request.size.made, plain.request.sampling, sizes, camera_prompt(pose, ""))
        for pose in poses
    ]
