"""The convolutional parts: Table 1's map sides, and aligned networks against a forward pass written out by hand."""

import re
import types
from fractions import Fraction

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from sppnet.backbones import BACKBONES, CONVNET5, NORMALIZATIONS, OVERFEAT5, ZF5, build_backbone
from sppnet.geometry import Footprint, cell_window, first_center, receptive_field
from sppnet.normalization import LocalResponseNorm, WithinChannelResponseNorm
from sppnet.timm_backbone import pretrained_statistics

TABLE_1 = ("zf5", "convnet5", "overfeat5", "overfeat7")


def small(name, **options):
    torch.manual_seed(0)
    return build_backbone(name, **{"width": 0.03, **options}).eval()


def heights(backbone, side):
    """The heights of the maps behind every convolution and pooling, of a wide image of height `side`."""
    images = torch.zeros(1, 3, side, 50)
    layers = [layer for layer in backbone.layers if not layer.startswith("norm")]
    with torch.no_grad():
        return [backbone.layer_outputs(images, [layer])[layer].shape[2] for layer in layers]


@pytest.mark.parametrize(
    ("name", "at_224", "at_180"),
    [
        (
            "zf5",  # conv1 pool1 conv2 pool2 conv3 conv4 conv5
            [111, 55, 27, 13, 13, 13, 13],
            [89, 44, 21, 10, 10, 10, 10],
        ),
        (
            "convnet5",  # conv1 conv2 pool2 conv3 pool3 conv4 conv5
            [55, 55, 27, 27, 13, 13, 13],
            [44, 44, 21, 21, 10, 10, 10],
        ),
        (
            "overfeat5",  # conv1 pool1 conv2 pool2 conv3 conv4 conv5
            [109, 36, 36, 18, 18, 18, 18],
            [87, 29, 29, 14, 14, 14, 14],
        ),
        (
            "overfeat7",
            [109, 36, 36, 18, 18, 18, 18, 18, 18],
            [87, 29, 29, 14, 14, 14, 14, 14, 14],
        ),
    ],
)
def test_map_sides_of_table_1(name, at_224, at_180):
    backbone = small(name, normalization="none")
    for side, expected in ((224, at_224), (180, at_180)):
        assert heights(backbone, side) == expected
        assert backbone.map_side(side) == expected[-1]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("zf5", "conv1 norm1 pool1 conv2 norm2 pool2 conv3 conv4 conv5"),
        ("convnet5", "conv1 norm1 conv2 norm2 pool2 conv3 pool3 conv4 conv5"),
        ("overfeat5", "conv1 pool1 norm1 conv2 pool2 conv3 conv4 conv5"),
        ("overfeat7", "conv1 pool1 norm1 conv2 pool2 conv3 conv4 conv5 conv6 conv7"),
    ],
)
def test_layers_stand_in_the_papers_order(name, layers):
    assert small(name).layers == tuple(layers.split())


@pytest.mark.parametrize(
    ("name", "stride", "offset", "channels", "parameters"),
    [
        ("zf5", 16, 15, 256, 3_726_464),
        ("convnet5", 16, 15, 256, 3_747_200),
        ("overfeat5", 12, 8, 512, 6_528_640),
        ("overfeat7", 12, 8, 512, 11_248_256),
    ],
)
def test_facts_about_each_backbone(name, stride, offset, channels, parameters):
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert (backbone.stride, backbone.offset, backbone.channels) == (stride, offset, channels)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


@pytest.mark.parametrize("name", TABLE_1)
def test_smallest_input_gives_one_cell(name):
    backbone = small(name)
    smallest = backbone.smallest_input
    assert backbone(torch.zeros(1, 3, smallest, smallest)).shape[2:] == (1, 1)
    assert backbone.map_side(smallest - 1) == 0
    with pytest.raises(RuntimeError):
        backbone(torch.zeros(1, 3, smallest - 1, smallest))


@pytest.mark.parametrize("name", TABLE_1)
def test_every_named_layer_is_a_step_of_the_forward_pass(name):
    backbone = small(name)
    x = images = torch.randn(2, 3, 97, 120)
    for layer, module in zip(backbone.layers, backbone, strict=True):
        x = module(x)
        assert torch.equal(backbone.layer_outputs(images, [layer])[layer], x)
        if layer.startswith("conv"):
            assert x.min() == 0  # after its ReLU
    assert torch.equal(backbone(images), x)


@pytest.mark.parametrize(
    ("name", "offset", "map_sides"),
    [
        ("zf5", 0, {224: 14, 256: 16, 392: 25, 480: 30, 576: 36, 688: 43, 864: 54, 1200: 75}),
        ("convnet5", 0, {224: 14, 256: 16}),
        ("overfeat5", -3, {224: 20, 256: 22, 300: 26, 360: 31, 364: 31, 448: 38, 560: 48}),
        ("overfeat7", -3, {224: 20, 256: 22, 300: 26, 360: 31, 364: 31, 448: 38, 560: 48}),
    ],
)
def test_aligned_pads_half_of_every_kernel(name, offset, map_sides):
    backbone = small(name)
    aligned = backbone.aligned()
    assert all(layer.padding == layer.kernel // 2 for layer in aligned.footprints)
    assert (aligned.stride, aligned.offset, aligned.channels) == (backbone.stride, offset, backbone.channels)
    assert {side: aligned.map_side(side) for side in map_sides} == map_sides
    side = min(map_sides)
    assert aligned(torch.zeros(1, 3, side, side)).shape[2:] == (map_sides[side],) * 2


@pytest.mark.parametrize("name", ["zf5", "convnet5", "overfeat5", "overfeat7"])
def test_a_backbone_that_is_built_aligned_is_one_that_was_aligned(name):
    backbone, built = small(name), small(name, aligned=True)
    built.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 97, 113)
    assert torch.equal(built(images), backbone.aligned()(images))
    assert built.options == backbone.aligned().options
    assert torch.equal(built.aligned()(images), built(images))


def transparent(backbone):
    """Lets a bright pixel change every cell that sees it: convolutions take sums.

    A normalization within channels lowers the cells around a bright one, by little, and maxima would hide that: it
    becomes stronger, and they become means.
    """
    for name, layer in list(backbone.named_children()):
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, WithinChannelResponseNorm):
            layer.alpha = 1.0
        elif isinstance(layer, nn.MaxPool2d) and isinstance(backbone.norm1, WithinChannelResponseNorm):
            setattr(backbone, name, nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
    return backbone.double()


def changed_cells(backbone, pixel):
    """Which cells of each layer change, bool (h, w), where one pixel, (x, y), gets brighter."""
    images = torch.full((1, 3, 240, 227), 0.1, dtype=torch.float64)
    before = backbone.layer_outputs(images, backbone.layers)
    images[:, :, pixel[1], pixel[0]] += 100
    after = backbone.layer_outputs(images, backbone.layers)
    return {layer: (after[layer] != before[layer]).any(dim=1)[0] for layer in backbone.layers}


def seeing_cells(footprints, pixel, size):
    """Which cells of a map of `size` (height, width) have the pixel, (x, y), in their `cell_window`: bool (h, w)."""
    windows = [[cell_window((x, y), footprints) for x in range(size[1])] for y in range(size[0])]
    return torch.tensor([[x0 <= pixel[0] < x1 and y0 <= pixel[1] < y1 for x0, y0, x1, y1 in row] for row in windows])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", TABLE_1)
@torch.no_grad()
def test_a_pixel_changes_exactly_the_cells_that_see_it(name, normalization, aligned):
    """Overfeat has an even kernel, and paddings that are not half of their kernels.

    At the borders a cell may miss pixels of its window that reach it through padding, or that no window holds.
    """
    backbone = build_backbone(name, width=0.01, normalization=normalization)
    backbone = backbone.aligned() if aligned else backbone
    footprints = {layer: backbone.footprints_to(layer) for layer in backbone.layers}
    backbone = transparent(backbone)
    for pixel in ((110, 121), (113, 118), (0, 0), (226, 239)):
        for layer, changed in changed_cells(backbone, pixel).items():
            seeing = seeing_cells(footprints[layer], pixel, changed.shape)
            assert not (changed & ~seeing).any(), (layer, pixel)
            assert pixel not in ((110, 121), (113, 118)) or torch.equal(changed, seeing), (layer, pixel)


def test_footprints_are_those_up_to_a_layer():
    backbone = build_backbone("zf5", width=0.05)
    fields = {layer: receptive_field(backbone.footprints_to(layer)) for layer in backbone.layers}
    assert fields == {
        "conv1": 7, "norm1": 11, "pool1": 15, "conv2": 31, "norm2": 47, "pool2": 63,
        "conv3": 95, "conv4": 127, "conv5": 159,
    }  # fmt: skip
    assert backbone.footprints == backbone.footprints_to("conv5")
    plain = build_backbone("zf5", width=0.05, normalization="across_channels")
    assert receptive_field(plain.footprints) == 139
    with pytest.raises(ValueError, match=r"^layer='fc6': must be one of conv1, "):
        backbone.footprints_to("fc6")


@pytest.mark.parametrize("name", TABLE_1)
def test_aligned_shares_the_parameters_and_leaves_the_original_as_it_was(name):
    backbone = small(name)
    images = torch.randn(1, 3, 90, 75)
    before, footprints = backbone(images), backbone.footprints
    aligned = backbone.aligned()
    assert list(aligned.state_dict()) == list(backbone.state_dict())
    assert all(a is b for a, b in zip(aligned.parameters(), backbone.parameters(), strict=True))
    assert backbone.footprints == footprints
    assert torch.equal(backbone(images), before)
    assert [f.kernel for f in aligned.aligned().footprints] == [f.kernel for f in footprints]
    aligned.train()
    assert not backbone.training
    with torch.no_grad():  # training one trains the other
        backbone.conv1.weight.mul_(2)
    assert torch.equal(aligned.conv1.weight, backbone.conv1.weight)


def aligned_zf5_by_hand(net, x):
    x = F.relu(F.conv2d(x, net.conv1.weight, net.conv1.bias, stride=2, padding=3))
    x = F.max_pool2d(x / (1 + 5e-5 * F.avg_pool2d(x * x, 3, 1, 1)) ** 0.75, 3, 2, padding=1)
    x = F.relu(F.conv2d(x, net.conv2.weight, net.conv2.bias, stride=2, padding=2))
    x = F.max_pool2d(x / (1 + 5e-5 * F.avg_pool2d(x * x, 3, 1, 1)) ** 0.75, 3, 2, padding=1)
    x = F.relu(F.conv2d(x, net.conv3.weight, net.conv3.bias, padding=1))
    x = F.relu(F.conv2d(x, net.conv4.weight, net.conv4.bias, padding=1))
    return F.relu(F.conv2d(x, net.conv5.weight, net.conv5.bias, padding=1))


def aligned_convnet5_by_hand(net, x):
    x = F.relu(F.conv2d(x, net.conv1.weight, net.conv1.bias, stride=4, padding=5))
    x = F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2)
    x = F.relu(F.conv2d(x, net.conv2.weight, net.conv2.bias, padding=2))
    x = F.max_pool2d(F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2), 3, 2, padding=1)
    x = F.relu(F.conv2d(x, net.conv3.weight, net.conv3.bias, padding=1))
    x = F.max_pool2d(x, 3, 2, padding=1)
    x = F.relu(F.conv2d(x, net.conv4.weight, net.conv4.bias, padding=1))
    return F.relu(F.conv2d(x, net.conv5.weight, net.conv5.bias, padding=1))


def aligned_overfeat5_by_hand(net, x):
    x = F.relu(F.conv2d(x, net.conv1.weight, net.conv1.bias, stride=2, padding=3))
    x = F.local_response_norm(F.max_pool2d(x, 3, 3, padding=1), 5, alpha=5e-4, beta=0.75, k=2)
    x = F.relu(F.conv2d(x, net.conv2.weight, net.conv2.bias, padding=2))
    x = F.max_pool2d(x, 2, 2, padding=1)
    x = F.relu(F.conv2d(x, net.conv3.weight, net.conv3.bias, padding=1))
    x = F.relu(F.conv2d(x, net.conv4.weight, net.conv4.bias, padding=1))
    return F.relu(F.conv2d(x, net.conv5.weight, net.conv5.bias, padding=1))


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("zf5", aligned_zf5_by_hand),
        ("convnet5", aligned_convnet5_by_hand),
        ("overfeat5", aligned_overfeat5_by_hand),
    ],
)
@pytest.mark.parametrize("size", [(101, 130), (7, 12), (1, 1)])
def test_aligned_equals_the_forward_pass_by_hand(name, by_hand, size):
    backbone = small(name).double()
    images = 50 * torch.randn(2, 3, *size, dtype=torch.float64)
    expected = by_hand(backbone, images)
    assert expected.shape[2:] == tuple(backbone.aligned().map_side(side) for side in size)
    torch.testing.assert_close(backbone.aligned()(images), expected)


@pytest.mark.parametrize("name", TABLE_1)
def test_a_shift_by_one_stride_shifts_the_aligned_maps_by_one_cell(name):
    aligned = small(name).double().aligned()
    stride = aligned.stride
    images = torch.randn(1, 3, 22 * stride, 23 * stride, dtype=torch.float64)
    maps, shifted = aligned(images[..., :-stride]), aligned(images[..., stride:])
    # 9 cells from the border no receptive field reaches the padding.
    inner = maps[..., 9:-9, 10:-8]
    assert inner.shape[2] > 3
    assert inner.std() > 0
    torch.testing.assert_close(shifted[..., 9:-9, 9:-9], inner)


@pytest.mark.parametrize(
    ("name", "paddings", "offset"),
    [
        *[("zf5", "table", 15), ("convnet5", "table", 15), ("overfeat5", "table", 8), ("overfeat7", "table", 8)],
        *[
            ("zf5", "aligned", 0),
            ("convnet5", "aligned", 0),
            ("overfeat5", "aligned", -3),
            ("overfeat7", "aligned", -3),
        ],
    ],
)
def test_cells_are_centred_where_stride_and_offset_say(name, paddings, offset):
    """Which pixels can change a cell: their middle is stride * cell + offset.

    Average pooling sees all cells of its window, max pooling only one of them, so it stands in here.
    """
    backbone = small(name, normalization="none").double()
    if paddings == "aligned":
        backbone = backbone.aligned()
    assert backbone.offset == offset
    stride = backbone.stride
    for layer_name, layer in list(backbone.named_children()):
        if isinstance(layer, nn.MaxPool2d):
            setattr(backbone, layer_name, nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
        elif isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1.0)
    images = torch.ones(1, 3, 12 * stride, 30 * stride, dtype=torch.float64, requires_grad=True)
    backbone(images)[0, 0, 6, 14].backward()
    seen = images.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert Fraction(int(seen[0] + seen[-1]), 2) == stride * 14 + offset


def test_width_scales_the_filters_of_every_layer():
    filters = [layer.out_channels for layer in small("zf5", width=0.25) if isinstance(layer, nn.Conv2d)]
    assert filters == [24, 64, 96, 96, 64]
    filters = [layer.out_channels for layer in small("zf5", width=1e-6) if isinstance(layer, nn.Conv2d)]
    assert filters == [1, 1, 1, 1, 1]
    assert small("overfeat5", width=0.5).channels == 256
    with torch.device("meta"):
        assert build_backbone("zf5", width=2).channels == 512


def test_the_tables_hold_the_papers_filters():
    def filters(table):
        return [row.filters for row in table if hasattr(row, "filters")]

    assert filters(ZF5) == filters(CONVNET5) == [96, 256, 384, 384, 256]
    assert filters(OVERFEAT5) == [96, 256, 512, 512, 512]


@pytest.mark.parametrize(
    ("normalization", "kind"),
    [
        ("within_channel", WithinChannelResponseNorm),
        ("across_channels", LocalResponseNorm),
        ("none", nn.Identity),
    ],
)
@pytest.mark.parametrize("name", TABLE_1)
def test_normalization_can_be_chosen(name, normalization, kind):
    backbone = small(name, normalization=normalization)
    assert isinstance(backbone.norm1, kind)
    assert backbone.map_side(224) == small(name).map_side(224)


def test_normalization_by_default_is_that_of_the_release_or_of_alexnet():
    assert isinstance(small("zf5").norm1, WithinChannelResponseNorm)
    for name in TABLE_1[1:]:
        assert isinstance(small(name).norm1, LocalResponseNorm)


@pytest.mark.parametrize("name", TABLE_1)
def test_options_build_the_same_backbone_again(name):
    backbone = small(name, width=0.05, normalization="none")
    again = build_backbone(**backbone.options)
    again.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 80, 70)
    assert torch.equal(again(images), backbone(images))


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf"), 8.01, 1e308])
def test_a_wrong_width_is_named(width):
    with pytest.raises(ValueError, match=rf"width={re.escape(str(width))}: must be above 0 and at most 8"):
        build_backbone("zf5", width=width)


def test_the_largest_width_has_less_than_a_thousand_million_parameters():
    with torch.device("meta"):
        backbones = [build_backbone(name, width=8) for name in TABLE_1]
    assert max(sum(p.numel() for p in backbone.parameters()) for backbone in backbones) == 718_935_040


def test_wrong_names_are_named_with_the_right_ones():
    with pytest.raises(ValueError, match=r"'zf6'.*zf5, convnet5, overfeat5, overfeat7, timm"):
        build_backbone("zf6")
    with pytest.raises(ValueError, match=r"normalization='batch'.*within_channel, across_channels, none"):
        build_backbone("zf5", normalization="batch")
    with pytest.raises(ValueError, match=r"layer='conv6'.*conv1, norm1, .*conv5"):
        small("zf5").layer_outputs(torch.zeros(1, 3, 64, 64), ["conv5", "conv6"])
    with pytest.raises(TypeError, match="depth"):
        build_backbone("zf5", depth=3)
    assert set(BACKBONES) == {*TABLE_1, "timm"}
    assert set(NORMALIZATIONS) == {"within_channel", "across_channels", "none"}


def test_gradients_reach_every_parameter():
    backbone = small("zf5", width=0.1)
    backbone(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in backbone.parameters())


@pytest.fixture(scope="module")
def resnet18():
    return build_backbone("timm", name="resnet18").eval()


def test_timm_model_as_a_backbone(resnet18):
    assert (resnet18.channels, resnet18.stride, resnet18.smallest_input) == (512, 32, 1)
    assert resnet18.layers == ("conv5",)
    images = torch.randn(1, 3, 100, 65)
    with torch.no_grad():
        maps = resnet18(images)
    assert maps.shape == (1, 512, resnet18.map_side(100), resnet18.map_side(65)) == (1, 512, 4, 3)
    assert torch.equal(resnet18.layer_outputs(images, ["conv5"])["conv5"], maps)
    with pytest.raises(ValueError, match=r"layer='conv4'.*conv5"):
        resnet18.layer_outputs(images, ["conv4"])


def test_aligned_timm_model_shares_weights_but_not_its_mode(resnet18):
    aligned = resnet18.aligned()
    pairs = zip(aligned.state_dict(keep_vars=True).items(), resnet18.state_dict(keep_vars=True).items(), strict=True)
    assert all(a_name == b_name and a is b for (a_name, a), (b_name, b) in pairs)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(aligned(images), resnet18(images))
    aligned.train()
    assert not resnet18.body.training
    assert not any(module.training for module in resnet18.modules())
    assert (aligned.offset, aligned.stride, aligned.map_side(100)) == (0, 32, 4)


def test_options_build_the_same_timm_model_again_without_a_download(resnet18):
    assert resnet18.options == {"architecture": "timm", "name": "resnet18", "pretrained": False}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_timm_are_taken_from_a_local_file(tmp_path, suffix):
    weights = timm.create_model("resnet18").state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    backbone = build_backbone("timm", name="resnet18", weights=str(path))
    for name, value in backbone.body.state_dict().items():
        assert torch.equal(value, weights[name])
    assert backbone.options["pretrained"] is False  # a checkpoint holds the weights then


def test_files_that_do_not_hold_the_weights_are_refused(tmp_path, caplog):
    some = {name: value for name, value in timm.create_model("resnet18").state_dict().items() if "layer3" not in name}
    contents = {"nothing.pth": {}, "others.pth": {"weight": torch.zeros(3)}, "some.pth": some}
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "hello.pth").write_text("hello")  # which torch reads as pickled, up to the e
    for name in ("text.pth", "hello.pth"):
        with pytest.raises(ValueError, match=rf"^backbone\.weights=.*{name}: not a file of weights \(.+\)"):
            build_backbone("timm", name="resnet18", weights=str(tmp_path / name))
    for name in contents:
        with pytest.raises(ValueError, match=rf"{name}: not weights of timm's resnet18 \(.+\)"):
            build_backbone("timm", name="resnet18", weights=str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"backbone\.weights=no\.pth: no such file"):
        build_backbone("timm", name="resnet18", weights="no.pth")


def test_weights_of_a_larger_model_are_refused_and_those_of_another_head_are_not(tmp_path, capfd):
    larger, own = (timm.create_model(name).state_dict() for name in ("resnet34", "resnet18"))
    torch.save(larger, tmp_path / "resnet34.pth")
    with pytest.raises(ValueError, match=r"resnet34\.pth: not weights of timm's resnet18 \(it has no layer1\.2\.conv1"):
        build_backbone("timm", name="resnet18", weights=str(tmp_path / "resnet34.pth"))
    del own["fc.weight"]
    torch.save(own | {"head.weight": torch.zeros(3, 512)}, tmp_path / "resnet18.pth")
    capfd.readouterr()
    build_backbone("timm", name="resnet18", weights=str(tmp_path / "resnet18.pth"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("resnet10t", ("running_mean", "running_var", "bn1.weight", ".bias")),
        ("mobilenetv3_small_050", ("running_", ".bias")),
        ("tf_efficientnet_lite0", ("running_var", ".bias")),
        ("test_convnext", (".gamma", "norm.weight", ".bias")),
        ("test_vit", ("norm1.weight", "qkv.bias", "cls_token", "pos_embed")),
    ],
)
def test_files_that_lack_one_kind_of_weights_are_refused(name, kinds, tmp_path):
    own = timm.create_model(name).state_dict()
    for kind in kinds:
        lacking = {key: value for key, value in own.items() if kind not in key}
        assert len(lacking) < len(own)
        torch.save(lacking, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=rf"w\.pth: not weights of timm's {name} \(.*{re.escape(kind)}.*\)"):
            build_backbone("timm", name=name, weights=str(tmp_path / "w.pth"))
    torch.save(dict(timm.create_model("resnet10t").named_parameters()), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"not weights of timm's resnet10t \(.*running_mean is missing\)"):
        build_backbone("timm", name="resnet10t", weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {"num_classes": 3}),
        ("mobilenetv3_small_050", {"num_classes": 3}),
        ("tf_efficientnet_lite0", {}),
        ("test_convnext", {"num_classes": 0}),
        ("test_vit", {"img_size": 96, "num_classes": 3}),  # timm resamples the position embeddings
        ("swin_s3_tiny_224", {}),
    ],
)
def test_files_with_other_heads_sizes_and_without_counters_are_taken(name, options, tmp_path):
    own = timm.create_model(name, **options).state_dict()
    torch.save({key: value for key, value in own.items() if "num_batches" not in key}, tmp_path / "w.pth")
    backbone = build_backbone("timm", name=name, weights=str(tmp_path / "w.pth"))
    assert torch.equal(next(backbone.parameters()), next(iter(own.values())))


def test_weights_that_cannot_be_downloaded_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        r"^backbone\.pretrained=true: the weights of resnet18 cannot be downloaded \(.+\); backbone\.weights=FILE t"
    )
    with pytest.raises(ValueError, match=message):
        build_backbone("timm", name="resnet18", pretrained=True)


def test_two_sources_of_weights_are_refused():
    with pytest.raises(ValueError, match=r"^backbone\.pretrained=true, backbone\.weights=w\.pth: set one of them"):
        build_backbone("timm", name="resnet18", pretrained=True, weights="w.pth")


@pytest.mark.parametrize(("index", "stride", "channels"), [(-1, 32, 512), (-2, 16, 256), (2, 8, 128)])
def test_the_feature_map_of_a_timm_model_can_be_chosen(index, stride, channels):
    with torch.device("meta"):
        backbone = build_backbone("timm", name="resnet18", out_indices=[index])
        again = build_backbone(**backbone.options)
    assert (backbone.stride, backbone.channels) == (again.stride, again.channels) == (stride, channels)
    assert backbone.map_side(224) == 224 // stride


@pytest.mark.parametrize("indices", [[7], [-9], [], [-1, -2]])
def test_feature_maps_that_a_timm_model_does_not_have_are_refused(indices):
    with pytest.raises(ValueError, match=r"out_indices=\[.*\]"):
        build_backbone("timm", name="resnet18", out_indices=indices)


def test_the_inputs_of_pretrained_weights_are_those_that_timm_names():
    mean, std = pretrained_statistics("resnet18")
    assert mean == pytest.approx((123.675, 116.28, 103.53))
    assert std == pytest.approx((58.395, 57.12, 57.375))
    assert pretrained_statistics("vit_base_patch16_224")[0] == (127.5, 127.5, 127.5)


def test_an_unknown_timm_model_is_named_with_similar_ones():
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18"):
        build_backbone("timm", name="resnet19")
    with pytest.raises(ValueError, match="'no such model'"):
        build_backbone("timm", name="no such model")
    with pytest.raises(ValueError, match=r"^backbone\.name='resnet81': timm has no such model \(close: resnet.+\)$"):
        pretrained_statistics("resnet81")


def convolutions_of(*layers):
    """The offset by the kernels, strides and paddings of a chain of layers."""
    return first_center([Footprint(*layer) for layer in layers])


STEM_OF_INCEPTION = ((3, 2), (3, 1), (3, 1, 1), (3, 2), (1, 1), (3, 1), (3, 2), (3, 2), (3, 2))


@pytest.mark.parametrize(
    ("name", "stride", "offset"),
    [
        ("resnet18", 32, convolutions_of((7, 2, 3), (3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1))),
        ("vgg11", 32, convolutions_of(*(5 * ((2, 2),)))),
        ("convnext_atto", 32, convolutions_of((4, 4), (2, 2), (2, 2), (2, 2))),
        ("inception_v3", 32, convolutions_of(*STEM_OF_INCEPTION)),
        ("test_efficientnet", 32, convolutions_of(*(5 * ((3, 2, 1),)))),
        # Patches, of which the last one is filled up on the right.
        ("vit_tiny_patch16_224", 16, convolutions_of((16, 16))),
        ("test_vit", 16, convolutions_of((16, 16))),
        ("swin_tiny_patch4_window7_224", 32, convolutions_of((4, 4), (2, 2), (2, 2), (2, 2))),
        # Takes multiples of 32 alone, so that sizes do not tell.
        ("hrnet_w18_small", 32, convolutions_of(*(5 * ((3, 2, 1),)))),
    ],
)
def test_cells_of_timm_models_are_centred_where_their_layers_say(name, stride, offset):
    with torch.device("meta"):
        backbone = build_backbone("timm", name=name)
    assert (backbone.stride, backbone.offset) == (stride, offset)


@pytest.mark.parametrize(("name", "tolerance"), [("convnext_atto", 3), ("test_vit", 1), ("resnet18", 2)])
def test_windows_on_maps_lie_where_the_pixels_matter(name, tolerance):
    """Of an untrained network: the pixels whose gradients are large lie around stride * cell + offset."""
    torch.manual_seed(1)
    backbone = build_backbone("timm", name=name).eval()
    images = torch.randn(1, 3, 224, 224, requires_grad=True)
    maps = backbone(images)
    cell = maps.shape[3] // 2
    (maps[0, :, cell, cell] * torch.randn(backbone.channels)).sum().backward()
    weights = images.grad.square().sum((0, 1, 2))
    center = (weights * torch.arange(224)).sum() / weights.sum()
    assert float(center) == pytest.approx(cell * backbone.stride + float(backbone.offset), abs=tolerance)


@pytest.mark.parametrize(
    ("name", "map_sides", "smallest"),
    [
        ("resnet18", {180: 6, 224: 7, 225: 8}, 1),
        ("vgg11", {180: 5, 224: 7, 225: 7}, 32),
        ("inception_v3", {75: 1, 180: 4, 224: 5, 256: 6}, 75),
        ("vit_tiny_patch16_224", {180: 12, 224: 14, 225: 15}, 1),
        ("swin_tiny_patch4_window7_224", {180: 6, 224: 7, 225: 8}, 1),
    ],
)
def test_map_sides_of_timm_models_are_their_own(name, map_sides, smallest):
    with torch.device("meta"):
        backbone = build_backbone("timm", name=name).eval()
        assert {side: backbone.map_side(side) for side in map_sides} == map_sides
        assert backbone.smallest_input == smallest
        for side, cells in map_sides.items():
            assert backbone(torch.empty(1, 3, side, side)).shape == (1, backbone.channels, cells, cells)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_mambaout"])
def test_timm_models_give_maps_of_every_size_that_they_say(name):
    backbone = build_backbone("timm", name=name).eval()
    for height, width in [(backbone.smallest_input, 40), (180, 224), (97, 133)]:
        maps = backbone(torch.randn(1, 3, height, width))
        assert maps.shape == (1, backbone.channels, backbone.map_side(height), backbone.map_side(width))
        assert maps.isfinite().all()


def test_maps_with_the_channels_last_are_turned():
    """mambaout gives (N, h, w, C)."""
    backbone = build_backbone("timm", name="test_mambaout").eval()
    assert backbone.channels_last
    images = torch.randn(2, 3, 96, 160)
    assert torch.equal(backbone(images), backbone.body(images)[-1].movedim(3, 1))
    assert not build_backbone("timm", name="test_vit").channels_last


def test_images_that_a_timm_model_does_not_take_are_named():
    backbone = build_backbone("timm", name="test_maxvit").eval()
    assert backbone.map_side(160) == 5
    match = r"^backbone.name='test_maxvit': the model takes no images of 170 x 170 pixels \([^\n]+\)$"
    with pytest.raises(ValueError, match=match):
        backbone.map_side(170)
    with pytest.raises(ValueError, match="takes no images of 160 x 200 pixels"):
        backbone(torch.zeros(1, 3, 160, 200))
    with pytest.raises(RuntimeError, match="channels"):  # what is not the fault of the size stays what it is
        backbone(torch.zeros(1, 4, 160, 160))


def test_models_whose_cells_do_not_lie_at_a_fixed_stride_are_refused():
    with pytest.raises(ValueError, match=r"'crossvit_9_240': its maps do not grow by one cell per"):
        build_backbone("timm", name="crossvit_9_240")


class ReadsValues(nn.Module):
    """One convolution, and a look at a value, which tensors without memory do not have."""

    feature_info = types.SimpleNamespace(channels=lambda: [2], reduction=lambda: [4])

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 4, stride=4)

    def forward(self, images):
        assert images.sum().item() < 1e9
        return [self.conv(images)]


@timm.models.register_model
def reads_values(
    pretrained, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, features_only=False, out_indices=()
):
    return ReadsValues()


def test_a_model_that_reads_values_is_asked_with_real_images():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with torch.device("meta"):
        backbone = build_backbone("timm", name="reads_values")
    assert torch.equal(torch.rand(3), expected)
    assert (backbone.stride, backbone.channels, backbone.smallest_input) == (4, 2, 4)
    assert (backbone.map_side(224), backbone.map_side(227), backbone.offset) == (56, 56, Fraction(3, 2))


def test_a_model_of_one_size_is_taken_at_that_size():
    with torch.device("meta"):
        backbone = build_backbone("timm", name="beit_base_patch16_224")
    assert (backbone.smallest_input, backbone.map_side(224)) == (224, 14)
    with pytest.raises(ValueError, match="takes no images of 180 x 180 pixels"):
        backbone.map_side(180)


def test_asking_a_timm_model_moves_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with torch.device("meta"):
        backbone = build_backbone("timm", name="test_efficientnet_gn")
    assert backbone.offset == 0
    assert torch.equal(torch.rand(3), expected)
