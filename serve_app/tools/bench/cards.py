"""What GPUs can do: rates of arithmetic and of memory, each with its source."""

from dataclasses import dataclass
from typing import Literal

Backend = Literal["FlashAttention 2", "cuDNN", "FlashAttention 3"]

TERA = 1e12
_MEASURED_SHARE = 790 / 989  # of the data sheet's peak, which large products reach on an H200
_FLASH2_SHARE = 0.72  # of the peak, which FlashAttention 2 reaches on an A100


@dataclass(frozen=True)
class Figure:
    """A rate, in FLOP/s or B/s, and where it is from."""

    value: float
    source: str


@dataclass(frozen=True)
class Card:
    """A GPU. Rates are for dense matrices, sums in float32.

    Attributes:
        attention: rates of attention in 16 bits, head dimension 128, by backend.
    """

    name: str
    bf16: Figure
    fp8: Figure
    bandwidth: Figure
    attention: dict[Backend, Figure]


def _hopper(name: str, bf16_source: str, bandwidth: Figure) -> Card:
    paper = "published with FlashAttention 3: H100, forward, head dimension 128, 8,192 tokens"
    return Card(
        name,
        bf16=Figure(790 * TERA, bf16_source),
        fp8=Figure(1580 * TERA, "twice the rate of bf16, as on the data sheet"),
        bandwidth=bandwidth,
        attention={
            "FlashAttention 2": Figure(370 * TERA, paper),
            "cuDNN": Figure(600 * TERA, paper),
            "FlashAttention 3": Figure(646 * TERA, paper),
        },
    )


def _ada(name: str, bf16_peak: float, fp8_peak: float, bandwidth: Figure, sheet: str) -> Card:
    share = f"{sheet}, times the share of its peak that an H200 reaches ({_MEASURED_SHARE:.0%})"
    flash2 = f"{sheet}, times the share of its peak that FlashAttention 2 is published to reach on an A100 (72%)"
    attention: dict[Backend, Figure] = {
        "FlashAttention 2": Figure(_FLASH2_SHARE * bf16_peak, flash2),
        "cuDNN": Figure(_FLASH2_SHARE * bf16_peak, "assumed equal to FlashAttention 2"),
        "FlashAttention 3": Figure(_FLASH2_SHARE * bf16_peak, "needs Hopper; FlashAttention 2 instead"),
    }
    return Card(
        name,
        Figure(_MEASURED_SHARE * bf16_peak, share),
        Figure(_MEASURED_SHARE * fp8_peak, share),
        bandwidth,
        attention,
    )


CARDS = {
    "h100": _hopper(
        "NVIDIA H100 SXM 80 GB",
        "measured on an H200, which has the same chip",
        Figure(3.35 * TERA, "NVIDIA's data sheet of the H100 SXM"),
    ),
    "h200": _hopper("NVIDIA H200 141 GB", "measured on an H200", Figure(4.8 * TERA, "NVIDIA's data sheet of the H200")),
    "l40s": _ada(
        "NVIDIA L40S 48 GB",
        362 * TERA,
        733 * TERA,
        Figure(0.864 * TERA, "NVIDIA's data sheet of the L40S"),
        "NVIDIA's data sheet of the L40S, dense",
    ),
    "4090": _ada(
        "NVIDIA GeForce RTX 4090 24 GB",
        165.2 * TERA,
        330.3 * TERA,
        Figure(1.008 * TERA, "NVIDIA's white paper on the Ada architecture"),
        "NVIDIA's white paper on the Ada architecture, dense, sums in float32",
    ),
}
