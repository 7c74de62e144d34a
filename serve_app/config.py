"""The application's settings: the `args` of a Serve config file. Unknown keys are refused."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

TINY_FILE = Path(__file__).resolve().parent.parent / "configs" / "tiny-cpu.yaml"
"""The shipped Serve file for a machine without a GPU; it is there in a clone, not in an installed package."""

AttentionBackend = Literal["sdpa", "varlen", "fa3"]
Quantization = Literal["none", "fp8", "int4"]
VaeKind = Literal["still", "stock"]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightsSource(Settings):
    """Where weights lie. `path`: a folder, a Hugging Face repository id, or `tiny:NAME` for the embedded checkpoint."""

    path: str
    revision: str | None = Field(default=None, description="Commit, tag or branch; used for repository ids only.")


class LoraSettings(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    source: WeightsSource
    file: str = Field(description="The safetensors file inside `source`.")
    weight: float = Field(default=1.0, description="Strength with which the adapter is fused.")
    expected_modules: int | None = Field(
        default=None, ge=1, description="Refuse the file unless it adapts exactly so many modules."
    )


class SchedulerSettings(Settings):
    """FlowMatchEulerDiscreteScheduler's settings. The defaults are those that the Lightning adapter was distilled with:
    a fixed shift of 3 (base_shift = max_shift = ln 3) and no terminal shift."""

    base_image_seq_len: int = 256
    max_image_seq_len: int = 8192
    base_shift: float = 1.0986122886681098
    max_shift: float = 1.0986122886681098
    shift: float = 1.0
    shift_terminal: float | None = None
    use_dynamic_shifting: bool = True
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    num_train_timesteps: int = 1000
    invert_sigmas: Literal[False] = False
    stochastic_sampling: Literal[False] = False
    use_beta_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_karras_sigmas: bool = False


class SizeSettings(Settings):
    """Picture areas in pixels. The model was trained with the defaults; the tiny checkpoint uses smaller ones."""

    output_area_px: int = Field(default=1024 * 1024, ge=32 * 32)
    vae_area_px: int = Field(default=1024 * 1024, ge=32 * 32)
    condition_area_px: int = Field(default=384 * 384, ge=32 * 32)


class EditorSettings(Settings):
    base: WeightsSource
    loras: tuple[LoraSettings, ...] = ()
    scheduler: SchedulerSettings = SchedulerSettings()
    device: Literal["cpu", "cuda"] = "cuda"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_pack_tokens: int = Field(
        default=9216,
        ge=1,
        description="Token budget of one packed step; an edit above it runs alone.",
    )
    vae: VaeKind = Field(
        default="still", description="still: 2-D convolutions, the same pictures faster; stock: diffusers' video VAE."
    )
    attention: AttentionBackend = Field(
        default="sdpa", description="sdpa runs anywhere; varlen and fa3 (FlashAttention 3) need CUDA and 16 bits."
    )
    compile: bool = Field(default=False, description="Compile the transformer's blocks, once for all packs.")
    adaln_tables: bool = Field(
        default=False,
        description="Look modulation up in tables and keep its weights on the CPU: a third less memory on the device.",
    )
    quantization: Quantization = Field(
        default="none",
        description="The blocks' linear layers after LoRA fusion, but for modulation and the image MLP's last one. "
        "fp8 needs CUDA of compute capability 8.9, int4 needs CUDA.",
    )
    text_encoder_device: Literal["same", "cpu"] = Field(
        default="same", description="cpu: keep the text encoder off the GPU and run it there, slower."
    )
    vae_tiling: bool = Field(
        default=False, description="Encode and decode in tiles, for small cards; needs vae: stock."
    )
    latents_cache_bytes: int = Field(default=64 * 2**20, ge=0, description="For encoded input pictures; 0: none.")
    prompts_cache_bytes: int = Field(default=256 * 2**20, ge=0, description="For encoded prompts; 0: none.")
    max_waiting_edits: int = Field(default=256, ge=1, description="Edits that may wait for the engine before 429.")
    max_batch_size: int = Field(default=16, ge=1, description="Edits that @serve.batch hands over at once.")
    batch_wait_timeout_s: float = Field(default=0.005, ge=0)

    @model_validator(mode="after")
    def _tiling_needs_the_stock_vae(self) -> Self:
        if self.vae_tiling and self.vae != "stock":
            raise ValueError("vae_tiling needs vae: stock, whose tiles diffusers blends")
        return self


class RewriterSettings(Settings):
    source: WeightsSource
    device: Literal["cpu", "cuda"] = "cuda"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_new_tokens: int = Field(default=320, ge=1)
    timeout_s: float = Field(default=20.0, gt=0)
    max_picture_px: int = Field(default=1024 * 1024, ge=32 * 32)
    min_picture_px: int = Field(default=32 * 32, ge=32 * 32)


class LimitSettings(Settings):
    max_body_bytes: int = Field(default=20 * 2**20, ge=1)
    max_picture_bytes: int = Field(default=20 * 2**20, ge=1)
    max_picture_px: int = Field(default=64_000_000, ge=1)
    max_aspect_ratio: float = Field(default=10.0, ge=1, description="Longer side of a picture over the shorter one.")
    max_pictures_per_edit: int = Field(default=4, ge=1, le=4)
    max_edits_per_request: int = Field(default=16, ge=1)
    max_prompt_chars: int = Field(default=4000, ge=1)
    max_inference_steps: int = Field(default=100, ge=1)
    max_guidance_scale: float = Field(default=20.0, gt=1)
    min_side_px: int = Field(default=64, ge=16)
    max_side_px: int = Field(default=2048, ge=64)
    num_decode_threads: int = Field(default=2, ge=1)


class CardSettings(Settings):
    """The GPU model that the deployments run on, for the memory plan of `camera-edit check`."""

    name: str
    memory_gb: float = Field(gt=0, description="Memory of one card in GB of 10^9 bytes.")


class AppSettings(Settings):
    """What `serve_app.app:build` takes. Deployment options (replicas, GPUs, health) belong to the Serve file itself."""

    editor: EditorSettings
    rewriter: RewriterSettings | None = None
    sizes: SizeSettings = SizeSettings()
    limits: LimitSettings = LimitSettings()
    card: CardSettings | None = Field(
        default=None, description="With it, a file whose models do not fit is refused; null: the plan has no limit."
    )
    wait_for_gpu: bool | None = Field(
        default=None,
        description="Wait for a GPU that the cluster lacks: true always, false never, null with an autoscaler.",
    )
