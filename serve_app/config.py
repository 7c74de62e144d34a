"""The application's settings: the `args` of a Serve config file. Unknown keys are errors."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TINY_FILE, RANDOM_FILE = CONFIGS / "tiny-cpu.yaml", CONFIGS / "random-cpu.yaml"
"""The shipped Serve files for a machine without a GPU. They are in a clone and in the image, not in a wheel."""

TOY_PREFIX = "toy:"
"""Before the name of a part of the tiny weights trained on the toy world."""

RANDOM_PREFIX = "tiny:"
"""The same for random weights of the same classes, built at their first use."""

MAX_LEASE_S = 600
"""Longest lease of a Jobs replica."""

Device = Literal["cpu", "cuda"]
AttentionBackend = Literal["sdpa", "varlen", "fa3"]
Quantization = Literal["none", "fp8", "int4"]
VaeKind = Literal["still", "stock"]
Scheduling = Literal["shortest", "arrival"]
Routing = Literal["picture", "balanced"]
ProvenanceKind = Literal["none", "mark", "full"]
Apply = Literal["fused", "camera", "request"]


def _origin(text: str) -> str:
    from serve_app.net.origins import origin_of  # Needs an HTTP client, which the engine alone does without.

    origin = origin_of(text)
    if origin is None:
        raise ValueError(f"{text!r} is no origin; write https://HOST or https://HOST:PORT")
    if origin != text:
        raise ValueError(f"{text!r} is not a canonical origin; write {origin}")
    return text


Origin = Annotated[str, AfterValidator(_origin)]


def _endpoint(text: str) -> str:
    from serve_app.net.origins import origin_of

    origin = origin_of(text)
    if origin is None or "?" in text or "#" in text:
        raise ValueError(f"{text!r} is no base URL of an OpenAI-compatible server; write http://HOST:PORT/v1")
    url = text.rstrip("/")
    if url.endswith("/chat/completions"):
        raise ValueError(f"{text!r} is more than a base URL; write {url.removesuffix('/chat/completions')}")
    if url.count("/") < 3:
        raise ValueError(f"{text!r} has no path; write {url}/v1")
    return url


Endpoint = Annotated[str, AfterValidator(_endpoint)]


def _redis_url(text: str) -> str:
    from redis.asyncio.connection import parse_url  # Needed where jobs are in Redis only.

    is_url = text.startswith(("redis://", "rediss://", "unix:///"))
    try:
        parse_url(text)
    except ValueError:
        is_url = False
    if not is_url:  # The message leaves the URL out, which may hold a password.
        raise ValueError(
            "must be a URL of Redis: redis://HOST:PORT/DB, rediss://HOST:PORT/DB for TLS, or unix:///PATH of a socket"
        )
    return text


RedisUrl = Annotated[str, AfterValidator(_redis_url)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WeightsSource(Settings):
    """Where weights are. `path`: a folder, a Hugging Face repository id, `toy:NAME` for the embedded tiny weights, or
    `tiny:NAME` for random ones."""

    path: str
    revision: str | None = Field(default=None, description="Commit, tag or branch; used for repository ids only.")

    @property
    def is_embedded(self) -> bool:
        return self.path.startswith((TOY_PREFIX, RANDOM_PREFIX))


CameraPart = Literal["trigger", "azimuth", "elevation", "distance"]
_POSES = {
    "azimuth": (0, 45, 90, 135, 180, 225, 270, 315),
    "elevation": (-30, 0, 30, 60),
    "distance": (0.6, 1.0, 1.4, 1.8),
}


class CameraWords(Settings):
    """The words of camera poses in a prompt, for an adapter that was trained with others than fal's. A pose with a part
    that a table lacks is an error of the request; an empty text puts nothing into the prompt."""

    trigger: str = ""
    azimuth: dict[int, str] = Field(description="By degrees: 0, 45, 90, 135, 180, 225, 270, 315.")
    elevation: dict[int, str] = Field(description="By degrees: -30, 0, 30, 60.")
    distance: dict[float, str] = Field(description="By 0.6, 1.0, 1.4, 1.8.")
    order: tuple[CameraPart, ...] = ("trigger", "azimuth", "elevation", "distance")

    @model_validator(mode="after")
    def _of_known_poses(self) -> Self:
        for part, known in _POSES.items():
            unknown = sorted(getattr(self, part).keys() - set(known))
            if unknown:
                raise ValueError(f"{part} {unknown[0]:g} is none of {', '.join(f'{value:g}' for value in known)}")
        return self


class LoraSettings(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    source: WeightsSource
    file: str = Field(description="The safetensors file inside `source`.")
    apply: Apply = Field(
        default="fused",
        description="fused: part of the model; camera: only for edits with a camera pose; request: only for edits that "
        "name it in `loras`. The last two adapt the transformer's blocks only.",
    )
    weight: float = Field(
        default=1.0, description="Strength with which the adapter is fused, or is used where a request names none."
    )
    min_weight: float = Field(default=-2.0, description="The lowest weight that a request may name.")
    max_weight: float = Field(default=2.0, description="The highest one.")
    expected_modules: int | None = Field(
        default=None, ge=1, description="The file must adapt exactly this number of modules."
    )
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="Of the file, in hexadecimal; another file is refused."
    )
    licence: str | None = Field(default=None, description="Of the file, for clients that ask what there is.")
    trigger_words: tuple[str, ...] = Field(
        default=(), description="What a prompt must hold for the adapter to act, for clients that ask."
    )
    camera: CameraWords | None = Field(
        default=None,
        description="The words of camera poses, of the first adapter that has some. null for all adapters: the "
        "words of fal's adapter for 2511.",
    )

    @property
    def is_fused(self) -> bool:
        """Whether it is a part of the model, for all edits."""
        return self.apply == "fused"

    @model_validator(mode="after")
    def _weight_within_bounds(self) -> Self:
        if not self.is_fused and not self.min_weight <= self.weight <= self.max_weight:
            raise ValueError(f"weight {self.weight:g} is not between min_weight and max_weight")
        return self


def _unique_names(loras: tuple[LoraSettings, ...]) -> tuple[LoraSettings, ...]:
    names = [lora.name for lora in loras]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"there is more than one adapter called {twice[0]}")
    return loras


Loras = Annotated[tuple[LoraSettings, ...], AfterValidator(_unique_names)]


class AdapterSettings(Settings):
    """The `user_config` of Editor and Ingress, the same for both: Serve applies a new one without a restart."""

    loras: Loras = Field(
        description="The adapters that are not fused; they replace those of args.editor.loras. An empty list: none."
    )

    @model_validator(mode="after")
    def _none_is_fused(self) -> Self:
        fused = [lora.name for lora in self.loras if lora.is_fused]
        if fused:
            raise ValueError(
                f"{fused[0]} has apply: fused, which needs a restart: it belongs to args.editor.loras; here it must be "
                "request or camera"
            )
        return self


class SchedulerSettings(Settings):
    """FlowMatchEulerDiscreteScheduler's settings. The defaults are those of the Lightning adapter's training: a fixed
    shift of 3 (base_shift = max_shift = ln 3) and no terminal shift."""

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

    @property
    def picture_bytes(self) -> int:
        """Of a square input picture in the store of jobs: RGB in 8 bits, for the VAE and for the text encoder."""
        return 3 * (self.vae_area_px + self.condition_area_px)


class EditorSettings(Settings):
    base: WeightsSource
    loras: Loras = ()
    adapters_bytes: int = Field(
        default=2 * 2**30,
        ge=1,
        description="Memory on the device for adapters that are not fused. Above it, the least recently used ones are "
        "in main memory only. Allocated when the first such adapter is used.",
    )
    scheduler: SchedulerSettings = SchedulerSettings()
    device: Device = "cuda"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_pack_tokens: int = Field(
        default=9216,
        ge=1,
        description="Token budget of one packed step; a larger edit runs alone.",
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
        description="Precompute modulation, whose weights stay in their files: a third less memory on the device. The "
        "first edit with an unusual number of steps, such as 17, reads them again.",
    )
    quantization: Quantization = Field(
        default="none",
        description="The blocks' linear layers after LoRA fusion, but for modulation and the image MLP's last one. "
        "fp8 needs CUDA of compute capability 8.9, int4 needs CUDA.",
    )
    text_encoder_device: Literal["same", "cpu"] = Field(
        default="same", description="cpu: keep the text encoder in main memory and run it on the CPU, which is slower."
    )
    vae_tiling: bool = Field(
        default=False, description="Encode and decode in tiles, for small cards; needs vae: stock."
    )
    latents_cache_bytes: int = Field(default=64 * 2**20, ge=0, description="For encoded input pictures; 0: no cache.")
    prompts_cache_bytes: int = Field(default=256 * 2**20, ge=0, description="For encoded prompts; 0: no cache.")
    provenance: ProvenanceKind = Field(
        default="mark",
        description="XMP in each output picture. none: nothing; mark: IPTC's term for edited with generative AI; "
        "full: also seed, steps, true_cfg_scale, camera pose and weights, never a prompt.",
    )
    scheduling: Scheduling = Field(
        default="shortest",
        description="Which edits a step runs. shortest: of the client that was served least, those with the least work "
        "left; longer ones pause. arrival: an edit that has begun runs to its end.",
    )
    routing: Routing = Field(
        default="balanced",
        description="Which of several editors gets an edit. balanced: Serve's own choice, the less busy one of two; "
        "picture: the one that has encoded its pictures before, unless it has much more to do than the others.",
    )
    max_paused_edits: int = Field(
        default=16,
        ge=0,
        description="Edits that have begun and may be left out of a step, and one more of each API key; they keep "
        "their memory.",
    )
    max_waiting_edits: int = Field(
        default=256,
        ge=1,
        description="Edits that may wait for the engine, and edits without a job that one Ingress accepts; more get "
        "a 429.",
    )
    wedged_after_s: float = Field(
        default=300.0,
        gt=0,
        description="Longest time of one call of the model (encoding, a step, decoding); then the replica is replaced.",
    )
    max_batch_size: int = Field(default=16, ge=1, description="Edits in one batch of @serve.batch.")
    batch_wait_timeout_s: float = Field(default=0.005, ge=0)

    @property
    def fused_loras(self) -> tuple[LoraSettings, ...]:
        return tuple(lora for lora in self.loras if lora.is_fused)

    @property
    def unfused_loras(self) -> tuple[LoraSettings, ...]:
        return tuple(lora for lora in self.loras if not lora.is_fused)

    def with_adapters(self, loras: tuple[LoraSettings, ...]) -> Self:
        """These settings with other adapters that are not fused.

        Raises:
            ValueError: two adapters have one name.
        """
        return self.model_copy(update={"loras": _unique_names(self.fused_loras + loras)})

    @model_validator(mode="after")
    def _tiling_needs_the_stock_vae(self) -> Self:
        if self.vae_tiling and self.vae != "stock":
            raise ValueError("vae_tiling needs vae: stock, whose tiles diffusers blends")
        return self


_FOR_WEIGHTS = {
    "device",
    "dtype",
    "compile",
    "min_picture_px",
    "max_batch_size",
    "max_batch_tokens",
    "batch_wait_timeout_s",
}


class RewriterSettings(Settings):
    """Either `source`, weights that the Rewriter deployment runs, or `endpoint`, a server that has a model already."""

    source: WeightsSource | None = None
    endpoint: Endpoint | None = Field(
        default=None,
        description="Base URL of an OpenAI-compatible server (vLLM, SGLang), as http://HOST:PORT/v1. The Ingress and "
        "Jobs replicas call it, also in private networks.",
    )
    model: str | None = Field(default=None, min_length=1, description="The model's name at the endpoint.")
    key_file: str | None = Field(
        default=None,
        description="A file with the endpoint's API key, on each node that runs an Ingress or Jobs.",
    )
    device: Device = "cuda"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = Field(default=False, description="Compile the step of one token; the replica starts after that.")
    max_new_tokens: int = Field(default=320, ge=1)
    timeout_s: float = Field(default=20.0, gt=0)
    max_picture_px: int = Field(default=1024 * 1024, ge=32 * 32)
    min_picture_px: int = Field(default=32 * 32, ge=32 * 32)
    max_batch_size: int = Field(default=8, ge=1, description="Prompts that are rewritten at once.")
    max_batch_tokens: int = Field(
        default=16384,
        ge=1,
        description="Of these: their number times the tokens of the longest one, its answer included. A longer prompt "
        "is rewritten alone.",
    )
    batch_wait_timeout_s: float = Field(default=0.005, ge=0, description="How long a batch that is not full waits.")
    cache_bytes: int = Field(default=4 * 2**20, ge=0, description="For rewritten prompts; 0: no cache.")

    @model_validator(mode="after")
    def _weights_or_an_endpoint(self) -> Self:
        if (self.source is None) == (self.endpoint is None):
            raise ValueError("needs exactly one of source (weights to run) and endpoint (a server to call)")
        if self.endpoint is None and (self.model is not None or self.key_file is not None):
            raise ValueError("model and key_file are for an endpoint, and there is none")
        if self.endpoint is not None and self.model is None:
            raise ValueError("endpoint needs model, the model's name there")
        idle = sorted(_FOR_WEIGHTS & self.model_fields_set)
        if self.endpoint is not None and idle:
            raise ValueError(f"{', '.join(idle)}: has no effect on an endpoint; remove it")
        return self

    @property
    def wait_s(self) -> float:
        """How long a caller waits for an answer: the rewriter's own timeout and 10 s for the calls themselves."""
        return self.timeout_s + 10


PictureKind = Literal["png", "jpeg", "webp", "gif", "heic", "avif", "bmp", "tiff"]


class LimitSettings(Settings):
    """Limits of a request. Above one the answer is a 400 that names the field and the limit; for the whole body, a 413;
    for what requests share, a 429."""

    max_body_bytes: int = Field(default=20 * 2**20, ge=1024, description="Of a request's body; default 20 MiB.")
    max_bodies_bytes: int = Field(
        default=256 * 2**20,
        ge=2048,
        description="Of the bodies of all requests without a response, half of it for one client; default 256 MiB.",
    )
    max_requests_per_key: int = Field(
        default=64, ge=1, description="Requests of one API key at once, long polls included; default 64."
    )
    max_work_per_s_per_key: float = Field(
        default=5.0,
        gt=0,
        description="Requests for edits of one API key that one ingress replica begins per second while other keys "
        "send work, and for a minute after; the others wait; default 5.",
    )
    picture_kinds: tuple[PictureKind, ...] = Field(
        default=("png", "jpeg", "webp", "gif", "heic", "avif"),
        min_length=1,
        description="Kinds of picture files that are accepted; default all but bmp and tiff.",
    )
    max_picture_bytes: int = Field(default=20 * 2**20, ge=1024, description="Of one picture's file; default 20 MiB.")
    max_picture_px: int = Field(
        default=64_000_000, ge=1, description="Of one picture, checked before it is decoded; default 64 million."
    )
    max_aspect_ratio: float = Field(
        default=10.0, ge=1, description="Longer side of a picture over the shorter one; default 10."
    )
    max_pictures_per_edit: int = Field(default=4, ge=1, le=4, description="Input pictures of one edit; default 4.")
    max_edits_per_request: int = Field(
        default=16, ge=1, le=1000, description="Prompts, views or variants of one request; default 16."
    )
    max_prompt_chars: int = Field(default=4000, ge=1, description="Of each prompt; default 4000.")
    max_inference_steps: int = Field(default=100, ge=1, description="Of one edit; default 100.")
    max_guidance_scale: float = Field(default=20.0, gt=1, description="guidance_scale and true_cfg_scale; default 20.")
    request_timeout_s: float = Field(
        default=600.0,
        ge=1,
        le=7 * 86400,
        description="Of a request without a policy, from the end of its body to its pictures (RunPod's jobs: from "
        "their pick-up); then 504. The largest timeout_s that a request may name; default 600.",
    )
    min_side_px: int = Field(default=64, ge=16, description="Smallest width and height of an output; default 64.")
    max_side_px: int = Field(default=2048, ge=64, description="Largest width and height of an output; default 2048.")
    decode_timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="CPU time for decoding and resizing one picture; default 10 seconds."
    )
    num_decode_threads: int = Field(
        default=2,
        ge=1,
        description="Sets of pictures of one client that one ingress replica decodes at once, each in a process; "
        "default 2.",
    )

    @model_validator(mode="after")
    def _some_sides_are_allowed(self) -> Self:
        if self.min_side_px > self.max_side_px:
            raise ValueError(f"min_side_px ({self.min_side_px}) is above max_side_px ({self.max_side_px})")
        return self


class SqliteStoreSettings(Settings):
    """Jobs in one file: they survive a restart. One file belongs to one service."""

    kind: Literal["sqlite"] = "sqlite"
    path: str = Field(
        default="~/.local/state/qwen-camera-edit/jobs.sqlite3", description="On a disk of the node that runs Jobs."
    )


class RedisStoreSettings(Settings):
    """Jobs in Redis: they survive the loss of a node. A password is read from CAMERA_EDIT_REDIS_PASSWORD."""

    kind: Literal["redis"]
    url: RedisUrl = Field(description="redis://HOST:PORT/DB, rediss:// for TLS, or unix:///PATH of a socket.")
    prefix: str = Field(
        default="camera-edit:", description="Of every key; each service that shares a Redis has its own."
    )


StoreSettings = SqliteStoreSettings | RedisStoreSettings


class JobSettings(Settings):
    cell: str = Field(
        default="u1",
        pattern=r"^[a-z0-9]{1,16}$",
        description="Ends the ids of RunPod's jobs. Of several clusters behind one load balancer, each has its own, by "
        "which requests for a job find theirs.",
    )
    store: StoreSettings = Field(default=SqliteStoreSettings(), discriminator="kind")
    max_active_jobs: int = Field(
        default=64, ge=1, description="Jobs that are with the editors at once; of one API key seven eighths."
    )
    max_queued_jobs: int = Field(default=256, ge=0, description="Jobs that may wait for the editors; more get a 429.")
    max_places_per_key: int | None = Field(
        default=None,
        ge=1,
        description="Jobs of one API key that may run and wait while other keys send work, and for a minute after; "
        "more get a 429. null: three quarters of max_active_jobs and max_queued_jobs together.",
    )
    max_store_bytes: int = Field(
        default=32 * 2**30,
        ge=1,
        description="Pictures, specifications and outcomes that the store holds when a job arrives; more get a 429. "
        "Default 32 GiB. Keep it below the disk's free space or Redis' maxmemory.",
    )
    max_store_bytes_per_key: int = Field(
        default=16 * 2**30, ge=1, description="The same for the jobs of one API key; default 16 GiB."
    )
    sync_retention_s: float = Field(default=60.0, ge=1, description="How long a /runsync job is kept after its end.")
    async_retention_s: float = Field(default=1800.0, ge=1, description="The same for /run and Idempotency-Key.")
    lease_s: float = Field(
        default=10.0,
        ge=1,
        le=MAX_LEASE_S,
        description="How long after its last heartbeat a Jobs replica counts as dead and its jobs are taken over.",
    )
    webhook_origins: tuple[Origin, ...] = Field(
        default=(), description="Allowed origins of webhooks: https://HOST[:PORT], or http://. None: no webhooks."
    )
    webhook_private_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="Private networks where these hosts may be, as 10.0.0.0/8. None: public hosts only."
    )
    webhook_timeout_s: float = Field(default=10.0, gt=0)
    webhook_gap_s: float = Field(default=10.0, ge=0, description="Between the attempts at a webhook.")


class FetchSettings(Settings):
    """Pictures by URL. Data URLs need no fetching."""

    origins: tuple[Origin, ...] = Field(
        default=(),
        description="Origins that pictures may be fetched from: https://HOST[:PORT], or http://. None: no fetching.",
    )
    private_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="Private networks where these hosts may be, as 10.0.0.0/8. None: public hosts only."
    )
    timeout_s: float = Field(default=10.0, gt=0, description="For fetching one picture.")


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
    jobs: JobSettings = JobSettings()
    fetch: FetchSettings = FetchSettings()
    served_model_names: tuple[str, ...] = Field(
        default=("Qwen/Qwen-Image-Edit-2511", "Qwen-Image-Edit-2511"),
        min_length=1,
        description="Values that OpenAI clients may send as `model`, as /v1/models lists them; adapters that are not "
        "fused need other names.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(),
        description="Origins of web pages that may call the service and read its responses: https://HOST[:PORT], or "
        "http://. None: only pages of its own origin may.",
    )
    mcp: bool = Field(default=True, description="Answer MCP clients at /mcp: tools for agents.")
    api_keys_file: str | None = Field(
        default=None,
        description="A file with an API key per line, on each node that runs an Ingress; read again when it changes. "
        "CAMERA_EDIT_API_KEYS_FILE overrides it; keys in CAMERA_EDIT_API_KEYS are valid as well.",
    )
    operator_keys_file: str | None = Field(
        default=None,
        description="A file with an operator key per line, on each node that runs an Ingress; read again when it "
        "changes. CAMERA_EDIT_OPERATOR_KEYS_FILE overrides it; keys in CAMERA_EDIT_OPERATOR_KEYS are valid as well.",
    )
    allow_anonymous: bool = Field(
        default=False, description="Serve other machines without any key: anyone who reaches the port may edit."
    )
    playground: bool | None = Field(
        default=None,
        description="Serve the web page for trying edits at /, without a key; its calls of the API need one. null: if "
        "only this machine can reach the service.",
    )
    card: CardSettings | None = Field(
        default=None, description="`camera-edit check` fails if the models do not fit on this card; null: no limit."
    )
    wait_for_gpu: bool | None = Field(
        default=None,
        description="Wait for a GPU that the cluster lacks: true always, false never, null with an autoscaler.",
    )

    @model_validator(mode="after")
    def _the_store_holds_a_picture(self) -> Self:
        least = self.sizes.picture_bytes
        for name, value in (
            ("max_store_bytes", self.jobs.max_store_bytes),
            ("max_store_bytes_per_key", self.jobs.max_store_bytes_per_key),
        ):
            if value < least:
                raise ValueError(f"jobs.{name} must be at least {least}, the bytes of one picture of the set sizes")
        return self

    @model_validator(mode="after")
    def _adapters_are_not_called_like_the_model(self) -> Self:
        self._require_other_names(self.editor.unfused_loras)
        return self

    def with_adapters(self, loras: tuple[LoraSettings, ...]) -> Self:
        """These settings with other adapters that are not fused.

        Raises:
            ValueError: two adapters have one name, or one has a name of served_model_names.
        """
        self._require_other_names(loras)
        return self.model_copy(update={"editor": self.editor.with_adapters(loras)})

    def _require_other_names(self, loras: tuple[LoraSettings, ...]) -> None:
        for lora in loras:
            if lora.name in self.served_model_names:
                raise ValueError(
                    f"the adapter {lora.name} has a name of served_model_names, so `model` cannot select it; rename one"
                )

    @property
    def rewriter_device(self) -> Device | None:
        """Where the Rewriter deployment runs; None: there is no such deployment."""
        return None if self.rewriter is None or self.rewriter.source is None else self.rewriter.device

    @property
    def gpu_deployments(self) -> list[str]:
        """The names of the deployments that run on a GPU."""
        devices = {"Editor": self.editor.device, "Rewriter": self.rewriter_device}
        return [name for name, device in devices.items() if device == "cuda"]
