"""DeepLabV3-R101-V1c in plain torch, and the networks from the hub, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from editar.errors import BenchmarkError, CheckpointError, ConfigError
from editar.evaluation.translation.networks import (
    MEAN,
    STD,
    AsppHead,
    DeepLab,
    DeepLabV3,
    DepthNetwork,
    HubSegmenter,
    from_mmseg,
    load_segmenter,
)
from editar.runtime.files import load_state, load_weights, save_weights
from tests.helpers.tiny_networks import write_depth_network, write_hub_segmenter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def full() -> DeepLabV3:
    with torch.device("meta"):
        return DeepLabV3()


def small() -> DeepLabV3:
    return DeepLabV3(layers=(1, 1, 1, 1), width=8)


def test_keys_are_those_of_openmmlab(full: DeepLabV3) -> None:
    """Names and shapes as in deeplabv3_r101-d8_512x512_4x4_320k_coco-stuff164k (mmseg 0.x)."""
    shapes = {key: tuple(value.shape) for key, value in full.state_dict().items()}
    expected = {
        "backbone.stem.0.weight": (32, 3, 3, 3),
        "backbone.stem.1.running_mean": (32,),
        "backbone.stem.3.weight": (32, 32, 3, 3),
        "backbone.stem.6.weight": (64, 32, 3, 3),
        "backbone.stem.7.bias": (64,),
        "backbone.layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "backbone.layer3.22.bn3.num_batches_tracked": (),
        "backbone.layer4.2.conv2.weight": (512, 512, 3, 3),
        "decode_head.conv_seg.weight": (171, 512, 1, 1),
        "decode_head.conv_seg.bias": (171,),
        "decode_head.image_pool.1.conv.weight": (512, 2048, 1, 1),
        "decode_head.image_pool.1.bn.weight": (512,),
        "decode_head.aspp_modules.0.conv.weight": (512, 2048, 1, 1),
        "decode_head.aspp_modules.3.conv.weight": (512, 2048, 3, 3),
        "decode_head.aspp_modules.3.bn.running_var": (512,),
        "decode_head.bottleneck.conv.weight": (512, 2560, 3, 3),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    assert {key.split(".")[0] for key in shapes} == {"backbone", "decode_head"}
    assert not any("relu" in key or key.endswith("fc.weight") for key in shapes)
    convolutions = [key for key in shapes if len(shapes[key]) == 4]
    assert len(convolutions) == 3 + 3 * 33 + 4 + 7  # stem, bottlenecks, downsamples, head


def test_strides_and_dilations(full: DeepLabV3) -> None:
    """Dilation 8: strides 1, 2, 1, 1; a dilated stage starts with the dilation of the one before."""
    seen = []
    for stage in (1, 2, 3, 4):
        blocks = getattr(full.backbone, f"layer{stage}")
        seen.append((blocks[0].conv2.stride[0], [block.conv2.dilation[0] for block in blocks][:3]))
    assert seen == [(1, [1, 1, 1]), (2, [1, 1, 1]), (1, [1, 2, 2]), (1, [2, 4, 4])]
    assert [module.conv.dilation[0] for module in full.decode_head.aspp_modules] == [1, 12, 24, 36]


@torch.no_grad()
def test_head_by_hand() -> None:
    head = AsppHead(inputs=8, width=4, classes=5).eval()
    for name, buffer in head.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(2, 8, 9, 9)

    def module(x: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        part = head.get_submodule(name)
        x = F.conv2d(x, part.conv.weight, **options)
        bn = part.bn
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5).relu()

    pooled = F.interpolate(module(x.mean((2, 3), keepdim=True), "image_pool.1"), (9, 9), mode="bilinear")
    parts = [pooled, module(x, "aspp_modules.0")]
    parts += [module(x, f"aspp_modules.{i}", padding=d, dilation=d) for i, d in ((1, 12), (2, 24), (3, 36))]
    expected = head.conv_seg(module(torch.cat(parts, 1), "bottleneck", padding=1))
    torch.testing.assert_close(head(x), expected)


def test_an_openmmlab_file_loads(tmp_path: Path) -> None:
    """As mmcv writes it: meta, state_dict, and an auxiliary head that only training needs."""
    source, target = small(), small()
    state = source.state_dict() | {
        "auxiliary_head.conv_seg.weight": torch.zeros(171, 8, 1, 1),
        "auxiliary_head.convs.0.conv.weight": torch.zeros(16, 16, 3, 3),
    }
    load_state(target, from_mmseg(state), "test")
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    torch.save({"meta": {"mmseg_version": "0.15.0", "CLASSES": ("person",)}, "state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not fit the configured model"):  # it is not an R-101
        load_segmenter(str(tmp_path / "a.pth"), CPU)
    with pytest.raises(CheckpointError, match="not a ResNet-V1c"):
        from_mmseg({"backbone.conv1.weight": torch.zeros(1)})


@torch.no_grad()
def test_labels_of_pictures() -> None:
    network = small()
    network_ = DeepLab(network, CPU)
    pictures = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), np.uint8)
    labels = network_(pictures)
    assert (labels.shape, labels.dtype) == ((1, 512, 512), np.uint8)
    pixels = torch.from_numpy(pictures[0]).permute(2, 0, 1).float()
    normalised = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    np.testing.assert_array_equal(labels[0], network(normalised[None]).argmax(1)[0])
    assert labels.max() < 171
    with pytest.raises(BenchmarkError, match="reads 512x512"):
        network_(pictures[:, :256])


def test_hub_segmenter(tmp_path: Path) -> None:
    write_hub_segmenter(tmp_path)
    network_ = load_segmenter(str(tmp_path), CPU)
    assert isinstance(network_, HubSegmenter)
    labels = network_(np.zeros((2, 96, 96, 3), np.uint8))
    assert (labels.shape, labels.dtype) == ((2, 96, 96), np.uint8)


def test_depth_judge(tmp_path: Path) -> None:
    write_depth_network(tmp_path)
    depth = DepthNetwork.load(str(tmp_path), CPU)(np.zeros((2, 96, 96, 3), np.uint8))
    assert depth.shape == (2, 64, 64)
    assert depth.dtype == np.float32
    with pytest.raises(ConfigError, match="cannot load"):
        DepthNetwork.load(str(tmp_path / "absent"), CPU)


def test_a_judge_with_random_weights_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers fills what a file lacks with random numbers; only what dpt-large itself lacks may be absent."""
    folder = write_depth_network(tmp_path / "dpt")
    file, whole = folder / "model.safetensors", load_weights(folder / "model.safetensors")

    def refused(state: dict[str, torch.Tensor]) -> str:
        save_weights(state, file)
        capfd.readouterr()
        with pytest.raises(ConfigError) as caught:
            DepthNetwork.load(str(folder), CPU)
        assert "\n" not in str(caught.value) and "LOAD REPORT" not in capfd.readouterr().err
        return str(caught.value)

    unused = "neck.fusion_stage.layers.0.residual_layer1."
    save_weights({key: value for key, value in whole.items() if not key.startswith(unused)}, file)
    pictures = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    lacking = DepthNetwork.load(str(folder), CPU)(pictures)
    save_weights(whole, file)
    np.testing.assert_array_equal(lacking, DepthNetwork.load(str(folder), CPU)(pictures))  # they are not used
    other = "neck.fusion_stage.layers.1.residual_layer1.convolution1.weight"
    message = refused({key: value for key, value in whole.items() if key != other})
    assert f"its file lacks 1 of the dpt's weights, first {other}" in message
    assert "cannot load" in refused(whole | {"head.head.0.bias": whole["head.head.0.bias"][:1]})
    file.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="cannot load"):
        DepthNetwork.load(str(folder), CPU)
    segmenter = write_hub_segmenter(tmp_path / "maskformer")
    with pytest.raises(ConfigError, match="maskformer: a model of type maskformer, dpt is needed here"):
        DepthNetwork.load(str(segmenter), CPU)
    with pytest.raises(ConfigError, match="a model of type dpt, maskformer is needed here"):
        load_segmenter(str(folder), CPU)
