"""Picture tokens of an edit. Imports no model, so that the application is built without torch."""

from serve_app.edits.request import EditRequest, Pictures, Pixels, Sampling
from serve_app.edits.sizes import MADE_MULTIPLE_PX, Size

TOKEN_PX = MADE_MULTIPLE_PX


def num_tokens(size: Size) -> int:
    """Tokens of a picture: one for each 16x16 pixels."""
    return (size.width // TOKEN_PX) * (size.height // TOKEN_PX)


def num_picture_tokens(request: EditRequest, pictures: Pictures) -> int:
    """Picture tokens that an edit adds to every packed step; CFG doubles them."""
    references = sum(num_tokens(size_of(picture.vae_pixels)) for picture in pictures)
    return (num_tokens(request.size.made) + references) * len(prompts(request.prompt, request.sampling))


def size_of(pixels: Pixels) -> Size:
    """A picture's size in pixels."""
    return Size(pixels.shape[1], pixels.shape[0])


def prompts(prompt: str, sampling: Sampling) -> tuple[str, ...]:
    """The prompts to encode for an edit: its prompt and, under CFG, the negative one."""
    return (prompt, sampling.negative_prompt) if sampling.true_cfg_scale > 1.0 else (prompt,)
