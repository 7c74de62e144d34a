"""What crosses between deployments: frozen records, pixels as arrays, never base64."""

from dataclasses import dataclass
from typing import NewType

import numpy as np
import numpy.typing as npt

from serve_app.edits.camera import CameraPose
from serve_app.edits.sizes import OutputSize, Size

Pixels = npt.NDArray[np.uint8]
"""An sRGB picture: uint8, shape (height, width, 3)."""

MAX_LORAS = 4
"""Adapters that one request may name."""

LOW_PRIORITY_DELAY_S = 60.0
"""Low-priority edits queue as if they had arrived so much later: behind the others, but not forever."""


def size_of(pixels: Pixels) -> Size:
    """A picture's size in pixels."""
    return Size(pixels.shape[1], pixels.shape[0])


@dataclass(frozen=True)
class PreparedPicture:
    """One input picture at the two sizes that the model wants.

    Attributes:
        vae_pixels: for the VAE; about 1 megapixel, sides multiples of 32.
        condition_pixels: for the text encoder; about 384² pixels, sides multiples of 32.
    """

    vae_pixels: Pixels
    condition_pixels: Pixels


Pictures = tuple[PreparedPicture, ...]
"""The 1 to 4 input pictures of one edit, in the order in which the prompt numbers them."""

SharedPictures = NewType("SharedPictures", object)
"""Pictures passed to another deployment by reference; code that passes them on does not read them."""


@dataclass(frozen=True)
class OutputFormat:
    """How the finished picture is encoded. `quality` (0 to 100) is for jpeg and webp."""

    format: str = "png"
    quality: int = 95

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"


@dataclass(frozen=True)
class Sampling:
    """The part of a request that the engine's schedule and guidance read."""

    seed: int = 42
    num_inference_steps: int = 4
    true_cfg_scale: float = 1.0
    negative_prompt: str = " "


@dataclass(frozen=True)
class LoraUse:
    """An adapter that a request names, and its weight."""

    name: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """How one picture is drawn, independent of the dialect. The parsers create it, the engine reads it.

    Attributes:
        prompt: the client's; EditService replaces it with the final one, rewritten and with camera tokens.
        low_priority: queued behind other edits, as if it had arrived `LOW_PRIORITY_DELAY_S` later.
        num_previews: pictures of the probable result to send while the edit runs.
        loras: the adapters that the request names.
        camera_words: the pose in the prompt's words, where they are not fal's.
    """

    prompt: str = ""
    camera: CameraPose | None = None
    rewrite_prompt: bool = False
    sampling: Sampling = Sampling()
    output: OutputFormat = OutputFormat()
    low_priority: bool = False
    num_previews: int = 0
    loras: tuple[LoraUse, ...] = ()
    camera_words: str | None = None


@dataclass(frozen=True, kw_only=True)
class EditRequest(EditOptions):
    """One edit with its id and its size, which depends on its first picture. Its pictures are passed separately.

    Attributes:
        client: the name of the API key that sent it, never the key; empty if no key is needed. Clients take turns; the
            picture does not depend on it.
        has_all_loras: `loras` holds those for its camera pose, too. The editor sets it.
    """

    request_id: str
    size: OutputSize
    client: str = ""
    has_all_loras: bool = False

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts to encode: the edit's own and, under CFG, the negative one."""
        is_guided = self.sampling.true_cfg_scale > 1.0
        return (self.prompt, self.sampling.negative_prompt) if is_guided else (self.prompt,)

    def num_tokens(self, pictures: Pictures) -> int:
        """Picture tokens that the edit adds to every packed step; CFG doubles them."""
        references = sum(size_of(picture.vae_pixels).num_tokens for picture in pictures)
        return (self.size.made.num_tokens + references) * len(self.prompts)


@dataclass(frozen=True)
class RewriteRequest:
    """A request to the rewriter. `prompt` has no camera tokens."""

    request_id: str
    prompt: str


@dataclass(frozen=True)
class Rewrite:
    """The result of a rewrite: the new prompt, or None and the reason why there is none."""

    prompt: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Progress:
    """Number of finished steps; 0 when the edit starts. `preview`, if one was due, is the predicted result, encoded.
    `is_paused`: other edits go first for now."""

    step: int
    num_steps: int
    preview: bytes | None = None
    is_paused: bool = False


@dataclass(frozen=True)
class EditTimings:
    """Seconds that one edit spent in each stage, and how it shared steps.

    Attributes:
        queue_s: from its arrival at the engine to its encoding.
        paused_s: between its beginning and its last step, while the engine did something else.
        shared_steps: steps that ran packed with at least one other edit.
    """

    queue_s: float = 0.0
    encode_s: float = 0.0
    steps_s: float = 0.0
    paused_s: float = 0.0
    decode_s: float = 0.0
    compress_s: float = 0.0
    num_steps: int = 0
    shared_steps: int = 0


@dataclass(frozen=True)
class TokenCounts:
    """Tokens that an edit took. Picture tokens are 16 x 16 px each.

    Attributes:
        prompt: of the text encoder: template, text and small pictures; with guidance for both prompts.
        references: of the input pictures.
        output: of the output picture.
    """

    prompt: int
    references: int
    output: int


@dataclass(frozen=True)
class EditResult:
    """A finished picture, encoded, with its timings, its tokens and the replica that made it."""

    data: bytes
    media_type: str
    timings: EditTimings
    tokens: TokenCounts
    worker_id: str = ""


@dataclass(frozen=True)
class EditOutcome:
    """A finished edit for a dialect's answer: the picture, the client's prompt, the final prompt, the seed, and the
    rewrite (None if none was requested)."""

    result: EditResult
    prompt: str
    final_prompt: str
    seed: int
    rewrite: Rewrite | None
