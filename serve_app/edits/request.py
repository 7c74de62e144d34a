"""What crosses between deployments: frozen records, pixels as arrays, never base64."""

from dataclasses import dataclass
from typing import Literal, NewType

import numpy as np
import numpy.typing as npt

from serve_app.edits.camera import CameraPose
from serve_app.edits.sizes import OutputSize

Pixels = npt.NDArray[np.uint8]
"""An sRGB picture: uint8, shape (height, width, 3)."""

PictureFormat = Literal["png", "jpeg", "webp"]

LOW_PRIORITY_DELAY_S = 60.0
"""What is of low priority queues as if it had come so much later: behind the others, but not for ever."""


@dataclass(frozen=True)
class PreparedPicture:
    """One input picture at the two sizes that the model wants.

    Attributes:
        vae_pixels: for the VAE; about 1 megapixel, sides multiples of 32.
        condition_pixels: for the text encoder's eyes; about 384² pixels, sides multiples of 32.
    """

    vae_pixels: Pixels
    condition_pixels: Pixels


Pictures = tuple[PreparedPicture, ...]
"""The 1 to 4 input pictures of one edit, in the order in which the prompt numbers them."""

SharedPictures = NewType("SharedPictures", object)
"""Pictures on their way to another deployment, by reference: whoever passes them on does not look inside."""


@dataclass(frozen=True)
class OutputFormat:
    """How the finished picture is encoded. `quality` (0 to 100) is for jpeg and webp."""

    format: PictureFormat = "png"
    quality: int = 95

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"


@dataclass(frozen=True)
class Sampling:
    """How the picture is drawn: the part of a request that the engine's schedule and guidance read."""

    seed: int = 42
    num_inference_steps: int = 4
    true_cfg_scale: float = 1.0
    negative_prompt: str = " "


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """How one picture is drawn, in the terms of no dialect. The parsers make it, the engine reads it.

    Attributes:
        prompt: the client's; EditService puts the final one, rewritten and with camera tokens, in its place.
        low_priority: edits that are not go first, for `LOW_PRIORITY_DELAY_S`.
        num_previews: pictures of the probable result to send while the edit runs.
    """

    prompt: str = ""
    camera: CameraPose | None = None
    rewrite_prompt: bool = False
    sampling: Sampling = Sampling()
    output: OutputFormat = OutputFormat()
    low_priority: bool = False
    num_previews: int = 0


@dataclass(frozen=True, kw_only=True)
class EditRequest(EditOptions):
    """One edit with its name, and its size, which depends on its first picture. Its pictures travel beside it."""

    request_id: str
    size: OutputSize


@dataclass(frozen=True)
class RewriteJob:
    """A wish for a better instruction. The camera tokens are not part of it."""

    request_id: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Rewrite:
    """What became of a rewriting: the new prompt, or None and the reason why there is none."""

    prompt: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Progress:
    """Steps that are done; 0 when the edit is taken up. `preview` is the picture as the model expects it to end,
    encoded, where one was due."""

    step: int
    num_steps: int
    preview: bytes | None = None


@dataclass(frozen=True)
class EditTimings:
    """Seconds that one edit spent waiting, being encoded, stepped, decoded and compressed; and its company.

    Attributes:
        shared_steps: steps that ran packed with at least one other edit.
    """

    queue_s: float
    encode_s: float
    steps_s: float
    decode_s: float
    compress_s: float
    num_steps: int
    shared_steps: int


@dataclass(frozen=True)
class TokenCounts:
    """Tokens that an edit took. Picture tokens are 16 x 16 px each.

    Attributes:
        prompt: what the text encoder saw: template, words and small pictures; under guidance for both prompts.
        references: of the input pictures.
        output: of the picture drawn.
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
    """One edit's end as a dialect needs it: the picture, the user's prompt, the prompt and the seed that ran, and what
    the rewriter did (None where it was not asked)."""

    result: EditResult
    prompt: str
    final_prompt: str
    seed: int
    rewrite: Rewrite | None
