"""The edit model as the engine sees it: begin an edit, step several at once, finish one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor

from serve_app.config import SchedulerSettings
from serve_app.editor.conditioning import PromptEncoder
from serve_app.editor.packed import Grid, PackedTransformer, Positions, Span
from serve_app.editor.schedule import Schedule, make_schedule
from serve_app.editor.vae import TOKEN_PX, Vae, pack
from serve_app.edits.request import EditJob, Pictures, Pixels, Sampling
from serve_app.edits.sizes import Size
from serve_app.errors import EditFailed


@dataclass
class Draft:
    """An edit being drawn: what it reads, its schedule, and the latents as they stand after `index` steps."""

    size: Size
    schedule: Schedule
    guidance: float
    prompts: tuple["Prompt", ...]
    references: torch.Tensor
    latents: torch.Tensor
    index: int = 0

    @property
    def done(self) -> bool:
        return self.index == self.schedule.num_steps

    @property
    def spans(self) -> list[Span]:
        """The edit's sequences in the next pack: itself and, under CFG, its unconditional twin."""
        timestep = float(self.schedule.timesteps[self.index])
        return [
            Span(self.latents, self.references, prompt.embeds, prompt.positions, timestep) for prompt in self.prompts
        ]


@dataclass(frozen=True)
class Prompt:
    """A prompt's embeddings, shape (tokens, hidden), and where its text and pictures stand."""

    embeds: torch.Tensor
    positions: Positions


class EditModel:
    """Transformer, VAE and prompt encoder of one checkpoint, LoRAs fused. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        transformer: PackedTransformer,
        vae: Vae,
        prompt_encoder: PromptEncoder,
        scheduler: SchedulerSettings,
        latent_channels: int,
    ) -> None:
        self._transformer = transformer
        self._vae = vae
        self._prompt_encoder = prompt_encoder
        self._scheduler = scheduler
        self._latent_channels = latent_channels

    @torch.inference_mode()
    def begin(self, job: EditJob, pictures: Pictures) -> Draft:
        """Encode prompt and pictures and draw the seed's noise.

        Raises:
            InvalidInput: the prompt is too long for the model.
        """
        size = job.size.made
        grids = [_grid(Size(p.vae_pixels.shape[1], p.vae_pixels.shape[0])) for p in pictures]
        prompts = tuple(
            self._read_prompt(text, pictures, _grid(size), grids) for text in _prompts(job.prompt, job.sampling)
        )
        references = torch.cat([self._vae.encode(picture.vae_pixels) for picture in pictures])
        return Draft(
            size=size,
            schedule=make_schedule(self._scheduler, job.sampling.num_inference_steps, num_tokens(size)),
            guidance=job.sampling.true_cfg_scale,
            prompts=prompts,
            references=references,
            latents=self._noise(job.sampling.seed, size, references),
        )

    @torch.inference_mode()
    def step(self, drafts: Sequence[Draft]) -> None:
        """Advance every draft by one step of its own schedule, in one packed transformer call."""
        spans = [draft.spans for draft in drafts]
        predictions = iter(self._transformer([span for own in spans for span in own]))
        for draft, own in zip(drafts, spans, strict=True):
            velocity = _guide([next(predictions) for _ in own], draft.guidance)
            moved = draft.latents.float() + draft.schedule.delta(draft.index) * velocity
            draft.latents = moved.to(velocity.dtype)
            draft.index += 1

    @torch.inference_mode()
    def finish(self, draft: Draft) -> Pixels:
        """Decode a finished draft.

        Raises:
            EditFailed: the latents are not finite numbers: a picture of them would be black.
        """
        if not torch.isfinite(draft.latents).all():
            raise EditFailed("The model produced numbers that are not finite, so there is no picture to show.")
        return self._vae.decode(draft.latents, draft.size)

    def _read_prompt(self, text: str, pictures: Pictures, target: Grid, references: list[Grid]) -> Prompt:
        embeds = self._prompt_encoder.encode(text, [picture.condition_pixels for picture in pictures])
        return Prompt(embeds, self._transformer.positions(target, references, len(embeds)))

    def _noise(self, seed: int, size: Size, like: torch.Tensor) -> torch.Tensor:
        # Drawn on the CPU, so that a seed means the same on every device, in the stock pipeline's layout.
        rows, columns = (2 * side for side in _grid(size))
        shape = (1, self._latent_channels, 1, rows, columns)
        noise = randn_tensor(
            shape, generator=torch.Generator().manual_seed(seed), device=torch.device("cpu"), dtype=like.dtype
        )
        return pack(noise).to(like.device)


def num_tokens(size: Size) -> int:
    """Tokens that a picture of this size takes; one for each 16x16 pixels."""
    return (size.width // TOKEN_PX) * (size.height // TOKEN_PX)


def num_picture_tokens(job: EditJob, pictures: Pictures) -> int:
    """Picture tokens that an edit adds to every packed step; CFG doubles them."""
    references = sum(picture.vae_pixels[::TOKEN_PX, ::TOKEN_PX, 0].size for picture in pictures)
    return (num_tokens(job.size.made) + references) * len(_prompts(job.prompt, job.sampling))


def _prompts(prompt: str, sampling: Sampling) -> tuple[str, ...]:
    return (prompt, sampling.negative_prompt) if sampling.true_cfg_scale > 1.0 else (prompt,)


def _grid(size: Size) -> Grid:
    return size.height // TOKEN_PX, size.width // TOKEN_PX


def _guide(predictions: list[torch.Tensor], guidance: float) -> torch.Tensor:
    """Classifier-free guidance, rescaled token by token to the conditional prediction's norm."""
    if len(predictions) == 1:
        return predictions[0]
    conditional, unconditional = predictions
    combined = unconditional + guidance * (conditional - unconditional)
    length = torch.linalg.vector_norm(conditional, dim=-1, keepdim=True)
    rescaled: torch.Tensor = combined * (length / torch.linalg.vector_norm(combined, dim=-1, keepdim=True))
    return rescaled
