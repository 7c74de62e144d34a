"""Limits torch's allocator to a replica's share of its GPU.

Ray counts fractions of a GPU but does not enforce them. Without a limit, one of two replicas on a card could use the
memory that `camera-edit check` has planned for the other.
"""

import os

import torch

from serve_app.errors import ConfigError

CONTEXT_BYTES = 1_500_000_000  # CUDA's context, its libraries' workspaces, and what the allocator cannot use again.

# Either one configures the allocator. torch reads them when the allocator is first used, not at import, and uses the
# first one that is set (torch 2.14.1, c10/cuda/CUDAAllocatorConfig.h). Older versions read the first one only.
_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def prepare_gpu(share: float) -> None:
    """Configure torch's allocator of this process. Call it before anything is allocated on the GPU.

    Makes segments expandable, so that packs of changing sizes do not fragment the memory, unless the environment
    configures the allocator already. For a share below 1, limits the allocator, which then raises OutOfMemoryError.

    Args:
        share: the part of a GPU that Ray has assigned to this process. Above 1 it still uses one GPU.

    Raises:
        ConfigError: the share is smaller than what CUDA itself uses.
    """
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
    if share < 1:
        total_bytes = torch.cuda.get_device_properties().total_memory
        torch.cuda.set_per_process_memory_fraction(allocator_fraction(share, total_bytes))


def allocator_fraction(share: float, total_bytes: float) -> float:
    """The part of a GPU that the allocator may use, so that it and CUDA's context stay within the share.

    Raises:
        ConfigError: nothing would be left for the allocator.
    """
    fraction = share - CONTEXT_BYTES / total_bytes
    if fraction <= 0:
        raise ConfigError(
            f"num_gpus: {share:g} of a GPU with {total_bytes / 1e9:.1f} GB is less than the "
            f"{CONTEXT_BYTES / 1e9:.1f} GB that CUDA takes for itself; raise ray_actor_options.num_gpus."
        )
    return fraction
