"""Computes the roofline of each stage of an edit from counted operations and the card's rates. Measures nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLForConditionalGeneration

from serve_app.editor.model.layout import SpanShape
from serve_app.tools.bench.cards import Backend, Card
from serve_app.tools.bench.counting import Kind
from serve_app.tools.bench.fake_card import Trace, encode_text, trace, trace_step, vae_stages
from serve_app.tools.bench.fusion import Kernel, Levers, kernels
from serve_app.tools.bench.names import TEXT_ENCODER, VAE_DECODE, VAE_ENCODE
from serve_app.weights.architectures import EditArchitecture

BANDWIDTH_SHARE = 0.85
SIDE_PX = 1024  # one megapixel
GRID = (64, 64)  # tokens of such a picture
CONDITION_PX = 392  # the side of a picture in the prompt: 196 tokens
TEMPLATE_TOKENS = 64  # leading tokens that the transformer does not get
TEXT_TOKENS = {1: 300, 3: 800}  # of a prompt with its pictures, by number of references

ASSUMPTIONS = (
    f"Elementwise kernels, and matrix products bound by memory, reach {BANDWIDTH_SHARE:.0%} of the card's bandwidth.",
    "Linear layers and convolutions run at the rate of large matrix products, attention at its backend's rate.",
    "No time passes between kernels: the CPU launches them in time, and steps are long enough to hide it.",
    "Attention's float32 sums, caches of the chip and the first run of a shape cost nothing.",
    "Compiled kernels are modelled: an elementwise group reads each input once and writes what is used outside of it.",
    "fp8 halves weights and activations of quantized layers; quantizing an input fuses with the kernel before it.",
)


@dataclass(frozen=True)
class Cost:
    """A stage's computed times on a card, and what they are computed from.

    Attributes:
        floor_s: all arithmetic at the rate of large matrix products.
        matmul_s: of linear layers and convolutions.
        elementwise_bytes: read and written by everything but those and attention.
    """

    flops: float
    floor_s: float
    matmul_s: float
    attention_s: float
    elementwise_bytes: float
    elementwise_s: float
    num_kernels: float

    @property
    def computed_s(self) -> float:
        return self.matmul_s + self.attention_s + self.elementwise_s

    @property
    def over_floor(self) -> float:
        return self.computed_s / self.floor_s


@dataclass(frozen=True)
class LeverRow:
    """A step with one more lever than the row before; `saved_s` is that lever's effect."""

    name: str
    cost: Cost
    saved_s: float
    block_bytes: float


@dataclass(frozen=True)
class StepTrace:
    """A step with one block, one with two, and how many blocks the transformer has."""

    one: Trace
    two: Trace
    num_layers: int

    def cost(self, card: Card, levers: Levers, backend: Backend) -> Cost:
        """The cost of the whole step: each further block adds what the second one did."""
        one, two = self.shallow_costs(card, levers, backend)
        more = self.num_layers - 1
        scaled = {name: first + more * (vars(two)[name] - first) for name, first in vars(one).items()}
        return Cost(**scaled)

    def shallow_costs(self, card: Card, levers: Levers, backend: Backend) -> tuple[Cost, Cost]:
        """The costs of the steps with one block and with two."""
        return cost(kernels(self.one, levers), card, backend), cost(kernels(self.two, levers), card, backend)


def cost(launched: Sequence[Kernel], card: Card, backend: Backend = "FlashAttention 2") -> Cost:
    """The time of kernels that run one after another."""
    bandwidth = BANDWIDTH_SHARE * card.bandwidth.value
    kinds: dict[Kind, list[Kernel]] = {"matmul": [], "attention": [], "elementwise": []}
    for kernel in launched:
        kinds[kernel.kind].append(kernel)

    def arithmetic_s(kernel: Kernel) -> float:
        return kernel.flops / (card.fp8 if kernel.fp8 else card.bf16).value

    elementwise_bytes = sum(kernel.num_bytes for kernel in kinds["elementwise"])
    return Cost(
        flops=sum(kernel.flops for kernel in launched),
        floor_s=sum(map(arithmetic_s, launched)),
        matmul_s=sum(max(arithmetic_s(kernel), kernel.num_bytes / bandwidth) for kernel in kinds["matmul"]),
        attention_s=sum(kernel.flops for kernel in kinds["attention"]) / card.attention[backend].value,
        elementwise_bytes=elementwise_bytes,
        elementwise_s=elementwise_bytes / bandwidth,
        num_kernels=len(launched),
    )


@lru_cache(maxsize=8)
def count_step(transformer: QwenImageTransformer2DModel, num_references: int) -> StepTrace:
    """Record a step of one edit at one megapixel."""
    shape = SpanShape(GRID, (GRID,) * num_references, TEXT_TOKENS[num_references])
    one, two = (trace_step(transformer, [shape], num_layers) for num_layers in (1, 2))
    return StepTrace(one, two, len(transformer.transformer_blocks))


def step_rows(step: StepTrace, card: Card, *, fp8: bool) -> list[LeverRow]:
    """A step as it is, and with one lever more in each row. With fp8 from the compiled one on: eager quantization takes
    many passes, and nobody runs it."""
    rows: list[LeverRow] = []
    for name, levers, backend in _levers(fp8=fp8):
        whole = step.cost(card, levers, backend)
        one, two = step.shallow_costs(card, levers, backend)
        saved = rows[-1].cost.computed_s - whole.computed_s if rows else 0.0
        rows.append(LeverRow(name, whole, saved, two.elementwise_bytes - one.elementwise_bytes))
    return rows


def shipped_row(rows: Sequence[LeverRow]) -> LeverRow:
    """The step as `configs/gpu-1x80gb.yaml` runs it, in 16 bits or with fp8."""
    return next(row for row in rows if row.name == "+ AdaLN tables")


def _levers(*, fp8: bool) -> Iterator[tuple[str, Levers, Backend]]:
    levers = Levers(fp8=fp8, one_qkv=fp8)  # quantizing fuses them
    if not fp8:
        yield "eager, FlashAttention 2", levers, "FlashAttention 2"
    levers = replace(levers, compiled=True)
    yield "compiled, FlashAttention 2", levers, "FlashAttention 2"
    yield "+ cuDNN's attention", levers, "cuDNN"
    if not fp8:
        levers = replace(levers, gelu_epilogue=True)
        yield "+ GELU as epilogue", levers, "cuDNN"
    levers = replace(levers, tables=True)
    yield "+ AdaLN tables", levers, "cuDNN"
    yield "+ FlashAttention 3", levers, "FlashAttention 3"
    missing = "GELU as epilogue" if fp8 else "one q/k/v Linear"
    yield f"+ {missing} (not built)", replace(levers, gelu_epilogue=True, one_qkv=True), "FlashAttention 3"


def other_stages(model: EditArchitecture, card: Card, num_references: int) -> dict[str, Cost]:
    """The stages beside the step, which run eagerly in 16 bits. All references are encoded one after the other."""
    encode, decode = _count_vae(model.vae)
    return {
        VAE_ENCODE: cost(kernels(encode, Levers()) * num_references, card),
        TEXT_ENCODER: cost(kernels(_count_text_encoder(model.text_encoder, num_references), Levers()), card),
        VAE_DECODE: cost(kernels(decode, Levers()), card),
    }


@lru_cache(maxsize=8)
def _count_vae(vae: AutoencoderKLQwenImage) -> tuple[Trace, Trace]:
    """Encoding and decoding one picture."""
    encode, decode = vae_stages(vae, SIDE_PX)
    return trace(encode), trace(decode)


@lru_cache(maxsize=8)
def _count_text_encoder(text_encoder: Qwen2_5_VLForConditionalGeneration, num_references: int) -> Trace:
    num_tokens = TEXT_TOKENS[num_references] + TEMPLATE_TOKENS
    return trace(encode_text(text_encoder, num_tokens, num_references, CONDITION_PX))
