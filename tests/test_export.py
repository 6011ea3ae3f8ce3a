"""Exported networks beside slow references: formulas in numpy, loops over bins; and files that disagree."""

import io
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from references import pyramid_pool_by_loops
from sppnet.backbones import build_backbone
from sppnet.geometry import pyramid_bins
from sppnet.network import SPPNet, load_network, save_network
from sppnet.pyramid import SpatialPyramidPool, bins_by_slices
from sppnet.use.export import (
    PixelClassifier,
    export_network,
    file_metadata,
    onnx_model,
    run_onnx,
    run_pt2,
    trace_module,
    write_onnx,
)
from sppnet.use.export_check import batch_shapes, check_predictions, drawn_batch, expected_probabilities

CLASSES = ("cat", "dog", "Bär", 'a "b", c', "\u732b")


def small(levels=(3, 2, 1), **options):
    torch.manual_seed(0)
    architecture = options.pop("architecture", "zf5")
    backbone = build_backbone(architecture, **({"width": 0.05} | options))
    scale = {"initialization": "fan_in", "input_mean": (120, 110, 100), "input_std": (60, 57, 55)}
    return SPPNet(backbone, levels, len(CLASSES), hidden=8, classes=CLASSES, **scale).eval()


def exported(network, path, format="onnx", **options):
    return export_network(network, path, format, file_metadata(network, 224, 256, "ab12"), **options)


@pytest.fixture(scope="module")
def network():
    return small()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    """An ONNX file of the network."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    difference = exported(network, path)
    assert 0 < difference.log_probabilities < 1e-5
    assert difference.sizes[0] == (31, 31)
    return path


@pytest.fixture(scope="module")
def predict(file):
    return run_onnx(file)


# Pooling


@pytest.fixture(scope="module")
def pooling_alone():
    """The pooling of levels 5 and 2, which are not nested, in onnxruntime."""
    program = trace_module(SpatialPyramidPool((5, 2)), torch.zeros(3, 2, 23, 37), free=(0, 2, 3))
    return run_onnx(onnx_model(program, ("maps", "pooled")).SerializeToString())


def test_slices_are_the_bins_of_adaptive_pooling_on_every_map_of_up_to_60_cells():
    maps = torch.randn(1, 1, 60, 60)
    for height in range(1, 61):
        for width in range(1, 61):
            part = maps[:, :, :height, :width]
            for n in (6, 7):
                assert torch.equal(bins_by_slices(part, n), F.adaptive_max_pool2d(part, n)), (height, width, n)


def test_exported_pooling_is_bit_equal_on_every_map_of_up_to_60_cells(pooling_alone):
    maps, ours = torch.randn(1, 2, 60, 60), SpatialPyramidPool((5, 2))
    for height in range(1, 61):
        for width in range(1, 61):
            part = maps[:, :, :height, :width].contiguous()
            found = pooling_alone(part.numpy())
            assert np.array_equal(found, ours(part).numpy()), (height, width)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 10), (11, 60)])
def test_exported_pooling_is_that_of_loops_over_the_bins(pooling_alone, size):
    maps = torch.randn(3, 2, *size)
    expected = pyramid_pool_by_loops(maps, (5, 2))
    assert np.array_equal(pooling_alone(maps.numpy()), expected.numpy())


# The whole network


def probabilities_by_numpy(network, pixels):
    """ZF-5 with normalization within channels, in float64: uint8 (N, 3, h, w) -> (N, C)."""
    weights = {name: value.double().numpy() for name, value in network.state_dict().items()}
    mean, std = (np.array(values)[:, None, None] for values in (network.input_mean, network.input_std))
    maps = (pixels - mean) / std

    def windows(maps, kernel, stride, padding):
        padded = np.pad(maps, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        views = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
        return views[:, :, ::stride, ::stride]  # (N, C, h, w, kernel, kernel)

    def convolve(name, maps, kernel, stride, padding):
        products = np.einsum("nchwyx,kcyx->nkhw", windows(maps, kernel, stride, padding), weights[f"{name}.weight"])
        return np.maximum(products + weights[f"{name}.bias"][:, None, None], 0)

    for name, kernel, stride, padding in (("conv1", 7, 2, 2), ("conv2", 5, 2, 1)):
        maps = convolve(f"backbone.{name}", maps, kernel, stride, padding)
        maps = maps / (1 + 5e-5 * windows(maps**2, 3, 1, 1).mean(axis=(4, 5))) ** 0.75
        maps = windows(maps, 3, 2, 0).max(axis=(4, 5))
    for name in ("conv3", "conv4", "conv5"):
        maps = convolve(f"backbone.{name}", maps, 3, 1, 1)

    pooled = []
    for n in network.levels:
        rows, columns = (pyramid_bins(side, n) for side in maps.shape[2:])
        bins = [maps[:, :, top:end, left:right].max(axis=(2, 3)) for top, end in rows for left, right in columns]
        pooled.append(np.stack(bins, axis=2).reshape(len(maps), -1))
    values = np.concatenate(pooled, axis=1)
    for name in ("fc6", "fc7", "fc8"):
        values = values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        values = values if name == "fc8" else np.maximum(values, 0)
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(1, 31, 31), (2, 31, 93), (1, 97, 70)])
def test_probabilities_are_those_of_the_formulas(network, predict, shape):
    pixels = drawn_batch(shape, seed=3)
    found = predict(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, probabilities_by_numpy(network, pixels), rtol=1e-5, atol=1e-7)


def test_a_batch_of_any_size_is_the_same_as_its_images_one_by_one(predict):
    for count in (1, 2, 3, 7):
        pixels = drawn_batch((count, 45, 61), seed=count)
        one_by_one = np.concatenate([predict(pixels[i : i + 1]) for i in range(count)])
        np.testing.assert_allclose(predict(pixels), one_by_one, rtol=1e-5)


def test_an_image_below_the_smallest_input_is_an_error_of_the_runtime(predict):
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        predict(np.zeros((1, 3, 8, 40), np.uint8))


def test_without_a_pyramid_the_size_is_fixed_and_the_batch_is_not(tmp_path):
    flat = SPPNet(small().backbone, None, 3, hidden=8, input_side=64, initialization="fan_in").eval()
    path = tmp_path / "flat.onnx"
    assert exported(flat, path).sizes == ((64, 64), (64, 64))
    model = onnx.load(path)
    assert sizes_of(model.graph.input[0]) == ["batch", 3, 64, 64]
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert (texts["any_size"], texts["smallest_input"], texts["classes"]) == ("false", "64", "null")
    predict, pixels = run_onnx(path), drawn_batch((5, 64, 64), seed=0)
    np.testing.assert_allclose(predict(pixels), expected_probabilities(flat, pixels), atol=1e-6)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        predict(np.zeros((1, 3, 65, 64), np.uint8))


def test_a_pt2_file_is_the_network_bit_for_bit_and_holds_the_metadata(tmp_path):
    other = small(architecture="overfeat5", normalization="none", width=0.02, levels=(2,))
    path = tmp_path / "model.pt2"
    assert exported(other, path, "pt2").log_probabilities == 0
    pixels = drawn_batch((2, 17, 30), seed=0)
    assert np.array_equal(run_pt2(path)(pixels), expected_probabilities(other, pixels))
    texts = dict.fromkeys(file_metadata(other, 224, 256, "ab12"), "")
    torch.export.load(path, extra_files=texts)
    assert json.loads(texts["classes"]) == list(CLASSES)
    assert json.loads(texts["network"]) == other.description()


def test_a_module_scales_pixels_as_testing_does(network):
    pixels = drawn_batch((2, 40, 50), seed=0)
    with torch.no_grad():
        found = PixelClassifier(network).eval()(torch.from_numpy(pixels))
    assert np.array_equal(found.numpy(), expected_probabilities(network, pixels))


# Metadata


def sizes_of(value):
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def test_the_file_says_what_it_takes_and_returns(network, file):
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.opset_import[0].version) == ("sppnet", 18)
    (taken,), (returned,) = model.graph.input, model.graph.output
    assert (taken.name, taken.type.tensor_type.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert sizes_of(taken) == ["batch", 3, "height", "width"]
    assert (returned.name, returned.type.tensor_type.elem_type) == ("probabilities", onnx.TensorProto.FLOAT)
    assert sizes_of(returned) == ["batch", len(CLASSES)]
    assert not model.graph.value_info  # in names that torch gives to sizes

    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts["classes"]) == list(CLASSES)
    numbers = {key: json.loads(texts[key]) for key in ("crop_side", "shorter_side", "smallest_input", "any_size")}
    assert numbers == {"crop_side": 224, "shorter_side": 256, "smallest_input": 31, "any_size": True}
    assert SPPNet.from_description(json.loads(texts["network"])).summary() == texts["summary"] == network.summary()
    assert texts["checkpoint"] == "ab12"


def test_what_torch_cannot_export_to_onnx_is_refused_in_one_line():
    """Adaptive pooling of maps of unknown size, in place of slices."""
    program = trace_module(torch.nn.AdaptiveMaxPool2d(3), torch.zeros(3, 2, 23, 37), free=(2, 3))
    with pytest.raises(ValueError, match=r"^format=onnx: torch\.onnx cannot export this network \([^\x1b\n]+\)$"):
        onnx_model(program, ("maps", "pooled"))


def test_pooling_is_by_slices_and_maxima_of_them(file):
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert {"Slice", "ReduceMax", "AveragePool", "Softmax"} <= kinds
    assert not {"AdaptiveMaxPool", "MaxRoiPool", "Loop", "If", "ArgMax"} & kinds


# The check


@pytest.mark.parametrize("smallest", [1, 31, 400])
def test_sizes_to_check_begin_with_the_smallest_input_and_differ(smallest):
    class Backbone:
        smallest_input = smallest

    class Network:
        input_side, backbone = None, Backbone

    shapes = batch_shapes(Network)
    assert len(shapes) == 50
    assert shapes[0] == (1, smallest, smallest)
    assert min(min(shape[1:]) for shape in shapes) == smallest
    assert max(max(shape[1:]) for shape in shapes) == max(512, 2 * smallest)
    assert sum(height != width for _, height, width in shapes) >= 45
    assert {1, 2, 3} <= {images for images, _, _ in shapes}


def test_drawn_images_are_neither_all_alike_nor_saturated(network):
    pixels = drawn_batch((4, 37, 51), seed=0)
    assert pixels.shape == (4, 3, 37, 51)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 20
    assert np.isin(pixels, (0, 255)).mean() < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:, ::-1].copy(), "disagrees with PyTorch on 1 images of 31 x 31 pixels: log probabilities differ"),
        (lambda p: p * np.float32(1.0001), "disagrees"),
        (lambda p: p * np.float32(np.exp(1e-3 * np.ptp(np.log(p), axis=1).max())), "disagrees"),
        (lambda p: np.full_like(p, np.nan), "disagrees"),
        (lambda p: p[:, :-1], r"returns float32 \(1, 4\)"),
        (lambda p: p.astype(np.float64), "returns float64"),
        (lambda p: p.no_such_method(), r"fails on 1 images of 31 x 31 pixels \(.*no_such_method"),
    ],
)
def test_a_prediction_that_differs_is_found(network, change, message):
    with pytest.raises(ValueError, match=f"^the exported file .*{message}.* it is not kept$"):
        check_predictions(network, lambda pixels: change(expected_probabilities(network, pixels)))


def test_only_one_wrong_size_is_found(network):
    def wrong_when_wide(pixels):
        probabilities = expected_probabilities(network, pixels)
        return probabilities if pixels.shape[3] < 500 else probabilities[:, ::-1].copy()

    with pytest.raises(ValueError, match=r"images of \d+ x 5\d\d pixels"):
        check_predictions(network, wrong_when_wide)


def test_a_network_that_computes_no_numbers_is_named(network, tmp_path):
    broken = small(levels=(1,))
    torch.nn.init.constant_(broken.fc8.bias, float("nan"))
    with pytest.raises(ValueError, match="probabilities are not finite"):
        check_predictions(broken, lambda pixels: expected_probabilities(network, pixels))


def truncating(maps, n):
    """`bins_by_slices` with the ceiling that ONNX's division makes of -(a // -n): bins lack their last cells."""
    for axis in (2, 3):
        side = maps.shape[axis]
        ends = [max((i + 1) * side // n, i * side // n + 1) for i in range(n)]
        starts = [i * side // n for i in range(n)]
        slices = [maps.narrow(axis, start, end - start) for start, end in zip(starts, ends, strict=True)]
        maps = torch.stack([part.amax(axis) for part in slices], axis)
    return maps


def test_a_file_that_disagrees_is_not_kept_and_the_one_before_is(tmp_path, monkeypatch):
    monkeypatch.setattr("sppnet.pyramid.bins_by_slices", truncating)
    path = tmp_path / "model.pt2"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="disagrees with PyTorch"):
        exported(
            SPPNet(small().backbone, None, 5, hidden=8, input_side=200, initialization="fan_in").eval(), path, "pt2"
        )
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_a_network_that_cannot_be_followed_is_refused_in_one_line(tmp_path):
    class Reading(torch.nn.Module):
        smallest_input, channels = 7, 3

        def forward(self, images):
            return images if images.sum().item() > 0 else -images

    network = small(levels=(1,))
    network.backbone = Reading()
    network.summary = lambda: "a network"
    with pytest.raises(ValueError, match=r"^a network: torch\.export cannot export it \(.+\)$"):
        exported_without_metadata(network, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def exported_without_metadata(network, path):
    return export_network(network, path, "onnx", {})


def test_weights_beyond_what_an_onnx_file_holds_are_refused(network, monkeypatch, tmp_path):
    monkeypatch.setattr("sppnet.use.export._MOST_ONNX_BYTES", 10)

    class Program:
        state_dict = network.state_dict()

    with pytest.raises(ValueError, match=r"weights of 0\.0 GB, and such a file holds 2 GB; use format=pt2"):
        write_onnx(Program, io.BytesIO(), {})


# Networks with other paddings


def test_an_aligned_network_is_saved_and_described_as_such(tmp_path):
    aligned = small().aligned()
    save_network(aligned, tmp_path / "aligned.ckpt")
    loaded = load_network(tmp_path / "aligned.ckpt")
    images = torch.randn(1, 3, 70, 85)
    assert torch.equal(loaded(images), aligned.eval()(images))
    assert loaded.description() == aligned.description() != small().description()
    assert loaded.backbone.footprints == aligned.backbone.footprints != small().backbone.footprints
