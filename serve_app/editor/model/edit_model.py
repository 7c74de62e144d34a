"""The edit model as the engine calls it: prepare one edit, begin several, step several at once, finish one."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from diffusers.utils.torch_utils import randn_tensor
from transformers import BatchFeature

from serve_app.config import SchedulerSettings
from serve_app.editor.model.adapters import AdapterLibrary, Uses
from serve_app.editor.model.cache import CacheStats, Key, TensorCache
from serve_app.editor.model.layout import Grid, SpanShape
from serve_app.editor.model.packed import PackedTransformer, Span
from serve_app.editor.model.prompt_encoder import PromptEncoder
from serve_app.editor.model.schedule import Schedule, make_schedule
from serve_app.editor.model.vae import Vae, pack
from serve_app.edits.images import pixels_hash
from serve_app.edits.request import EditRequest, Pictures, Pixels, TokenCounts, size_of
from serve_app.edits.sizes import TOKEN_PX, Size
from serve_app.errors import EditFailed


@dataclass(frozen=True)
class Prepared:
    """The part of an edit that needs no device; computed beside the engine thread.

    Attributes:
        prompts: the prompt and, under CFG, the negative one; each with its cache key and the text encoder's inputs.
        pictures: cache key and pixels of each reference, at the VAE's size.
        noise: the seed's noise, shape (output tokens, channels), on the CPU.
        embeds: the prompts' embeddings, where the text encoder runs on the CPU beside the device; otherwise empty.
        uses: the adapters that are not fused.
    """

    size: Size
    schedule: Schedule
    guidance: float
    prompts: tuple[tuple[Key, BatchFeature], ...]
    pictures: tuple[tuple[Key, Pixels], ...]
    noise: torch.Tensor
    embeds: dict[Key, torch.Tensor] = field(default_factory=dict)
    uses: Uses = ()


@dataclass(eq=False)
class Draft:
    """An edit while it runs.

    Attributes:
        references: tokens of the input pictures, shape (reference tokens, channels).
        latents: after `index` steps, shape (output tokens, channels).
        velocity: the last step's prediction, in the shape of `latents`.
    """

    size: Size
    schedule: Schedule
    guidance: float
    prompts: tuple["Prompt", ...]
    references: torch.Tensor
    latents: torch.Tensor
    uses: Uses = ()
    index: int = 0
    velocity: torch.Tensor | None = None

    @property
    def done(self) -> bool:
        return self.index == self.schedule.num_steps

    @property
    def tokens(self) -> TokenCounts:
        prompt = sum(prompt.embeds.shape[0] for prompt in self.prompts)
        return TokenCounts(prompt, self.references.shape[0], self.latents.shape[0])

    @property
    def spans(self) -> list[Span]:
        """The edit's sequences in the next pack: the conditional one and, under CFG, the unconditional one."""
        timestep = self.schedule.steps[self.index]
        return [
            Span(self.latents, self.references, prompt.embeds, prompt.shape, timestep, self.uses)
            for prompt in self.prompts
        ]


@dataclass(frozen=True)
class Prompt:
    """A prompt's embeddings, shape (tokens, hidden), and the shape of its span."""

    embeds: torch.Tensor
    shape: SpanShape


class EditModel:
    """Transformer, VAE and prompt encoder of one checkpoint, with its adapters.

    Not thread-safe: one thread owns it. Only `prepare` may be called by one other thread at the same time.
    """

    def __init__(
        self,
        transformer: PackedTransformer,
        vae: Vae,
        prompt_encoder: PromptEncoder,
        scheduler: SchedulerSettings,
        latent_channels: int,
        library: AdapterLibrary | None = None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        latents_cache_bytes: int = 0,
        prompts_cache_bytes: int = 0,
    ) -> None:
        self._transformer = transformer
        self.vae = vae
        self.prompt_encoder = prompt_encoder
        self._scheduler = scheduler
        self._latent_channels = latent_channels
        self.library = AdapterLibrary() if library is None else library
        self._device = device
        self._wait = completion_of(device)
        self._dtype = dtype
        self._encodes_beside = prompt_encoder.device.type != device.type
        self._latents_cache = TensorCache(latents_cache_bytes)
        self._prompts_cache = TensorCache(prompts_cache_bytes)

    def prepare(self, request: EditRequest, pictures: Pictures) -> Prepared:
        """Tokenize the prompts, hash the pictures, and sample the seed's noise, all on the CPU. Where the text encoder
        runs on the CPU, encode the prompts, too, while the device runs steps.

        Raises:
            InvalidInput: the prompt is too long for the model.
            ServiceUnavailable: there is no adapter of a requested name here.
        """
        size, sampling = request.size.made, request.sampling
        seen = [picture.condition_pixels for picture in pictures]
        seen_keys = tuple(pixels_hash(pixels) for pixels in seen)
        prompts = tuple(((text, *seen_keys), self.prompt_encoder.tokenize(text, seen)) for text in request.prompts)
        return Prepared(
            size=size,
            schedule=make_schedule(self._scheduler, sampling.num_inference_steps, size.num_tokens),
            guidance=sampling.true_cfg_scale,
            prompts=prompts,
            pictures=tuple(((pixels_hash(picture.vae_pixels),), picture.vae_pixels) for picture in pictures),
            noise=self._noise(sampling.seed, size),
            embeds=self._encoded(dict(prompts)) if self._encodes_beside else {},
            uses=self.library.uses(request),
        )

    @torch.inference_mode()
    def begin(self, edits: Sequence[Prepared]) -> list[Draft]:
        """Encode the edits' prompts, in one batch, and pictures."""
        embeds = self._encode_prompts(edits)
        drafts = [self._draft(prepared, embeds) for prepared in edits]
        self._wait()
        return drafts

    @torch.inference_mode()
    def step(self, drafts: Sequence[Draft]) -> None:
        """Advance every draft by one step of its own schedule, in one packed transformer call. Returns when the device
        has done it, so that timings and progress are true and no step is queued that a cancelled edit is in."""
        for part in self._transformer.parts(drafts):
            self._step(part)
        self._wait()

    def _step(self, drafts: Sequence[Draft]) -> None:
        spans = [draft.spans for draft in drafts]
        predictions = iter(self._transformer([span for own in spans for span in own]))
        for draft, own in zip(drafts, spans, strict=True):
            velocity = _guide([next(predictions) for _ in own], draft.guidance)
            moved = draft.latents.float() + draft.schedule.deltas[draft.index] * velocity
            draft.latents, draft.velocity = moved.to(velocity.dtype), velocity
            draft.index += 1

    @torch.inference_mode()
    def preview(self, draft: Draft) -> Pixels:
        """The probable result: the last step's prediction is followed to sigma 0 at once."""
        if draft.velocity is None:
            return self.vae.decode(draft.latents, draft.size)
        noise_left = sum(draft.schedule.deltas[draft.index :])  # negative, down to sigma 0
        return self.vae.decode(draft.latents + noise_left * draft.velocity, draft.size)

    @torch.inference_mode()
    def finish(self, draft: Draft) -> Pixels:
        """Decode a finished draft.

        Raises:
            EditFailed: the latents are not finite; the picture would be black.
        """
        if not torch.isfinite(draft.latents).all():
            raise EditFailed("The model produced numbers that are not finite, so there is no picture to show.")
        return self.vae.decode(draft.latents, draft.size)

    def draw(self, drafts: Sequence[Draft]) -> list[Pixels]:
        """Run all remaining steps of the drafts in one pack and decode them. The engine steps by itself, since edits
        join and leave its packs."""
        while running := [draft for draft in drafts if not draft.done]:
            self.step(running)
        return [self.finish(draft) for draft in drafts]

    @property
    def cache_stats(self) -> dict[str, CacheStats]:
        """Look-ups of reference latents and of prompt embeddings."""
        return {"latents": self._latents_cache.stats, "prompts": self._prompts_cache.stats}

    def free(self) -> None:
        """Free memory: empty the caches and the unused blocks of torch's allocator."""
        self.forget()
        gc.collect()  # a failed call may have left tensors in reference cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def forget(self) -> None:
        """Empty the caches, and take the adapters that are not fused off the device."""
        self._transformer.forget()
        self._latents_cache.clear()
        if not self._encodes_beside:  # what is in main memory is the preparing thread's
            self._prompts_cache.clear()

    def _encode_prompts(self, edits: Sequence[Prepared]) -> dict[Key, torch.Tensor]:
        if self._encodes_beside:
            return {key: tensor.to(self._device) for prepared in edits for key, tensor in prepared.embeds.items()}
        return self._encoded({key: inputs for prepared in edits for key, inputs in prepared.prompts})

    @torch.inference_mode()
    def _encoded(self, wanted: dict[Key, BatchFeature]) -> dict[Key, torch.Tensor]:
        """Embeddings from the cache or, in one batch, from the text encoder."""
        cached = {key: self._prompts_cache.get(key) for key in wanted}
        embeds = {key: tensor for key, tensor in cached.items() if tensor is not None}
        missing = [key for key in wanted if key not in embeds]
        if missing:
            for key, tensor in zip(missing, self.prompt_encoder.encode([wanted[key] for key in missing]), strict=True):
                embeds[key] = tensor
                self._prompts_cache.put(key, tensor)
        return embeds

    def _draft(self, prepared: Prepared, embeds: dict[Key, torch.Tensor]) -> Draft:
        self._transformer.modulation.prepare(prepared.schedule.steps)
        shape = SpanShape(_grid(prepared.size), tuple(_grid(size_of(pixels)) for _, pixels in prepared.pictures), 0)
        prompts = [embeds[key] for key, _ in prepared.prompts]
        return Draft(
            size=prepared.size,
            schedule=prepared.schedule,
            guidance=prepared.guidance,
            prompts=tuple(Prompt(each, replace(shape, num_text=len(each))) for each in prompts),
            references=torch.cat([self._encode_picture(key, pixels) for key, pixels in prepared.pictures]),
            latents=prepared.noise.to(self._device),
            uses=prepared.uses,
        )

    def _encode_picture(self, key: Key, pixels: Pixels) -> torch.Tensor:
        latents = self._latents_cache.get(key)
        if latents is None:
            latents = self.vae.encode(pixels)
            self._latents_cache.put(key, latents)
        return latents

    def _noise(self, seed: int, size: Size) -> torch.Tensor:
        # On the CPU and in the stock pipeline's order, so that a seed gives the same noise on every device.
        rows, columns = (2 * side for side in _grid(size))
        shape = (1, self._latent_channels, rows, columns)
        generator = torch.Generator().manual_seed(seed)
        return pack(randn_tensor(shape, generator=generator, device=torch.device("cpu"), dtype=self._dtype))


def completion_of(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done what this thread has queued. On the CPU it is done already."""
    if device.type != "cuda":
        return lambda: None
    done: torch.Event = torch.cuda.Event(blocking=True)  # sleeps instead of spinning: other threads need the core

    def wait() -> None:
        done.record()
        done.synchronize()

    return wait


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
