"""Sizes and checksums of the weights that the shipped Serve files name, from public records."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shipped:
    """A repository at a commit.

    Attributes:
        tensor_bytes: of all safetensors files in a folder of the repository, without their headers; "." is the top.
        file_bytes: sizes of files.
        sha256: of files.
    """

    repo: str
    commit: str
    tensor_bytes: Mapping[str, int] = field(default_factory=dict)
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def download_bytes(self) -> int:
        return sum(self.tensor_bytes.values()) + sum(self.file_bytes.values())


_LIGHTNING = "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors"
_ANGLES = "qwen-image-edit-2511-multiple-angles-lora.safetensors"

SHIPPED = (
    Shipped(
        "Qwen/Qwen-Image-Edit-2511",
        "6f3ccc0b56e431dc6a0c2b2039706d7d26f22cb9",
        tensor_bytes={"transformer": 40_860_802_176, "text_encoder": 2 * 8_292_166_656},
        file_bytes={"vae/diffusion_pytorch_model.safetensors": 253_806_966},
    ),
    Shipped(
        "lightx2v/Qwen-Image-Edit-2511-Lightning",
        "d74eba145674fd7e31b949324e148e21e7118abd",
        file_bytes={_LIGHTNING: 849_608_296},
        sha256={_LIGHTNING: "22226e8d05d354bb356627d428809f5afd7819399b077238a2b70a82883a904f"},
    ),
    Shipped(
        "fal/Qwen-Image-Edit-2511-Multiple-Angles-LoRA",
        "e3066224ab74263f4a5b6179cd1a3b0a15577e44",
        file_bytes={_ANGLES: 295_140_688},
        sha256={_ANGLES: "42426ded4e25fd22879d9e198b857556445ef4ca56e8da3246d0345155bb6765"},
    ),
    Shipped(
        "Qwen/Qwen3-VL-8B-Instruct",
        "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
        tensor_bytes={".": 2 * 8_767_123_696},
    ),
    # Its size is not on record.
    Shipped("Qwen/Qwen3-VL-4B-Instruct", "ebb281ec70b05090aa6165b016eac8ec08e71b17"),
)


def find_shipped(path: str, revision: str | None) -> Shipped | None:
    """The shipped revision that a source names: as a repository, or as a folder of the repository's name; else None."""
    name = path.rstrip("/").rpartition("/")[2]
    found = (each for each in SHIPPED if each.repo.rpartition("/")[2] == name)
    return next((each for each in found if revision in (None, each.commit)), None)
