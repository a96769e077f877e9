"""LPIPS equals the package `lpips`, whose definition stands here in torch: the package needs torchvision, too."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import safetensors.numpy  # noqa: E402

from onereward_jax.data.sample import Sample  # noqa: E402
from onereward_jax.errors import UserError  # noqa: E402
from onereward_jax.evaluation.meters import perceptual  # noqa: E402
from tests.support import parity  # noqa: E402


def reference(weights, first, second):
    """`lpips.LPIPS.forward` of images (B, H, W, 3) in [0, 1], with its scaling, slices and lin layers."""

    def features(image):
        x = torch.from_numpy(2 * image.transpose(0, 3, 1, 2) - 1)
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - shift[:, None, None]) / scale[:, None, None]
        slices = (("slice1.0", 4, 2), ("slice2.3", 1, 2), ("slice3.6", 1, 1), ("slice4.8", 1, 1), ("slice5.10", 1, 1))
        for number, (name, stride, padding) in enumerate(slices):
            if number in (1, 2):
                x = torch.nn.functional.max_pool2d(x, 3, 2)
            kernel, bias = (torch.from_numpy(weights[f"net.{name}.{part}"]) for part in ("weight", "bias"))
            x = torch.relu(torch.nn.functional.conv2d(x, kernel, bias, stride, padding))
            yield x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10)

    total = 0
    for number, (a, b) in enumerate(zip(features(first), features(second), strict=True)):
        lin = torch.from_numpy(weights[f"lin{number}.model.1.weight"])
        total = total + torch.nn.functional.conv2d((a - b) ** 2, lin).mean(dim=(1, 2, 3))
    return total


def test_lpips(tmp_path):
    draw = np.random.default_rng(0)
    weights = {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in perceptual.shapes().items()}
    weights = {name: np.abs(array) if name.startswith("lin") else array for name, array in weights.items()}
    first, second = draw.random((2, 2, 64, 48, 3)).astype(np.float32)
    with torch.no_grad(), parity.one_thread():
        expected = reference(weights, first, second)
    assert parity.relative_error(perceptual.distance(weights, first, second), expected) < parity.TOLERANCE
    others = {"scaling_layer.shift": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(weights | others, tmp_path / "lpips.safetensors")
    meter = perceptual.perceptual(str(tmp_path / "lpips.safetensors"))
    image, other = (np.round(255 * x[0]).astype(np.uint8) for x in (first, second))
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[20:40, 10:30] = 1
    sample = Sample(image, mask, "a cat", "image_fill", "1", target=other)
    inside = np.where(mask[..., None] == 1, other, image)
    (of_inside, of_other) = meter.measure([sample] * 2, [inside, other])
    assert max(of_inside["lpips_outside"], of_other["lpips_target"]) < 1e-9
    assert min(of_inside["lpips_target"], of_other["lpips_outside"]) > 1e-3
    del weights["lin4.model.1.weight"]
    safetensors.numpy.save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"weights of LPIPS with AlexNet: missing: lin4\.model\.1"):
        perceptual.perceptual(str(tmp_path / "other.safetensors"))
