"""A replica's part of its GPU's memory: what torch's allocator may take of the share that Ray has assigned.

Ray counts fractions of a GPU and enforces none. Two replicas on one card would otherwise take from each other what
`camera-edit check` has planned for each.
"""

import os

import torch

from serve_app.errors import ConfigError

CONTEXT_BYTES = 1_500_000_000  # CUDA's context, its libraries' workspaces, and what the allocator cannot use again.

# Either one configures the allocator. torch reads them when the allocator is first used, not when it is imported, and
# takes the first one that is set (torch 2.14.1, c10/cuda/CUDAAllocatorConfig.h). Older versions know the first one.
_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def prepare_gpu(share: float) -> None:
    """Set up torch's allocator of this process; to be called before anything is allocated on the GPU.

    Segments become expandable, so that packs of changing sizes do not fragment the memory, unless the environment
    configures the allocator already. Below a whole GPU the allocator is limited, and raises OutOfMemoryError beyond.

    Args:
        share: the part of a GPU that Ray has assigned to this process. Above 1 it still uses one GPU.

    Raises:
        ConfigError: the share is smaller than what CUDA itself takes.
    """
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
    if share < 1:
        total_bytes = torch.cuda.get_device_properties().total_memory
        torch.cuda.set_per_process_memory_fraction(allocator_fraction(share, total_bytes))


def allocator_fraction(share: float, total_bytes: float) -> float:
    """The part of a GPU that the allocator may take, so that it and CUDA's context stay within the share.

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
