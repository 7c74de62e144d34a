"""The 2-D VAE compared with the stock one."""

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from serve_app.editor.model.vae import StillVae

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=[(8, 1), (32, 2)], ids=["tiny", "base_dim 32, two blocks"])
def stock(request: pytest.FixtureRequest) -> AutoencoderKLQwenImage:
    base_dim, num_res_blocks = request.param
    torch.manual_seed(0)
    return AutoencoderKLQwenImage(base_dim=base_dim, num_res_blocks=num_res_blocks).eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 192)])
@pytest.mark.parametrize("channels_last", [False, True])
@torch.inference_mode()
def test_it_equals_the_stock_vae(stock: AutoencoderKLQwenImage, height: int, width: int, channels_last: bool) -> None:
    still = StillVae(stock)
    if channels_last:
        still = still.to(memory_format=torch.channels_last)
    picture = torch.rand(1, 3, height, width) * 2 - 1
    latents = torch.randn(1, 16, height // 8, width // 8)
    encoded = stock.encode(picture[:, :, None]).latent_dist.mode()[:, :, 0]
    decoded = stock.decode(latents[:, :, None]).sample[:, :, 0]
    assert (still.encode(picture) - encoded).abs().max() <= TOLERANCE
    assert (still.decode(latents) - decoded).abs().max() <= TOLERANCE
    # The compared values are not constant.
    assert encoded.std() > 100 * TOLERANCE
    assert decoded.std() > 100 * TOLERANCE


@torch.inference_mode()
def test_the_last_temporal_slice_is_the_one_that_counts(stock: AutoencoderKLQwenImage) -> None:
    """The comparison notices a wrong slice."""
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    right = StillVae(stock)
    wrong = StillVae(stock)
    first = next(module for module in wrong.modules() if isinstance(module, torch.nn.Conv2d))
    first.weight.copy_(stock.encoder.conv_in.weight[:, :, 0])
    assert (right.encode(picture) - wrong.encode(picture)).abs().max() > TOLERANCE


def test_the_stock_vae_stays_as_it_was(stock: AutoencoderKLQwenImage) -> None:
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    StillVae(stock)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stock.state_dict().items())
