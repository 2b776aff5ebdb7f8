"""The U-Net builder: seeds, and that time and class reach the output."""

import pytest
import torch

from ssat_ray.config import PretrainConfig
from ssat_ray.models.unet import build_unet

CONFIG = PretrainConfig(channels=(8, 16), norm_num_groups=2)


def _unet(seed: int = 0, shape: tuple[int, int, int] = (1, 8, 8)):
    return build_unet(CONFIG, shape, 4, seed).eval()


@torch.no_grad()
def _predict(unet, x: torch.Tensor, t: int, label: int) -> torch.Tensor:
    return unet(x, t, class_labels=torch.full((len(x),), label)).sample


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 8, 16)])
def test_output_has_the_shape_of_the_input(shape: tuple[int, int, int]) -> None:
    x = torch.randn(2, *shape)
    assert _predict(_unet(shape=shape), x, 5, 1).shape == x.shape


def test_class_time_and_image_change_the_output() -> None:
    unet, x = _unet(), torch.randn(3, 1, 8, 8)
    base = _predict(unet, x, 500, 0)
    for other in (_predict(unet, x, 500, 1), _predict(unet, x, 20, 0), _predict(unet, -x, 500, 0)):
        assert float((other - base).abs().amax((1, 2, 3)).min()) > 1e-3 * float(base.abs().mean())
    assert torch.equal(base, _predict(unet, x, 500, 0))


def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_untouched() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, other = (_unet(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_no_attention_and_as_many_classes_as_asked() -> None:
    unet = _unet()
    assert not any(type(m).__name__ == "Attention" for m in unet.modules())
    assert unet.class_embedding.num_embeddings == 4
    assert unet.config.block_out_channels == (8, 16)


def test_it_can_be_saved_and_loaded_by_diffusers(tmp_path) -> None:
    from diffusers import UNet2DModel

    unet = _unet()
    unet.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again, x = UNet2DModel.from_pretrained(tmp_path).eval(), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(_predict(again, x, 3, 2), _predict(unet, x, 3, 2))
