"""Protocols as lists of views, against lists written by hand, and properties for images of all shapes."""

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from references import View, views_of
from sppnet.backbones import build_backbone
from sppnet.classify.loading import shorter_side_for
from sppnet.classify.views import ViewProtocol, in_pixels
from sppnet.data.images import resize_shorter_side
from sppnet.geometry import CROP_POSITIONS, POSITIONS, size_at_shorter_side
from sppnet.network import SPPNet

VIEWS = Path(__file__).parent.parent / "configs" / "views"
SHIPPED = (
    "center",
    "full",
    "full_aligned",
    "full_flip",
    "multi_view",
    "multi_view_full",
    "multi_view_full_aligned",
    "ten_crop",
    "ten_crop_maps",
)


def shipped(name, crop_side=224):
    return ViewProtocol(**in_pixels(yaml.safe_load((VIEWS / f"{name}.yaml").read_text()), crop_side))


def images(most=4):
    """(height, width) of images from 1:4 to 4:1, down to 32 pixels."""
    sides = st.integers(32, 1000)
    return st.tuples(sides, sides).filter(lambda size: max(size) <= most * min(size))


def test_all_shipped_protocols_are_tested():
    assert sorted(path.stem for path in VIEWS.glob("*.yaml")) == sorted(SHIPPED)


def test_center_is_one_crop_in_the_middle():
    assert views_of(shipped("center"), 375, 500) == [View(256, (58, 16, 282, 240), False)]


def test_full_and_full_flip():
    assert views_of(shipped("full"), 375, 500) == [View(256, None, False)]
    assert views_of(shipped("full_flip"), 375, 500) == [View(256, None, False), View(256, None, True)]


@pytest.mark.parametrize("name", ["ten_crop", "ten_crop_maps"])
def test_ten_crop_by_hand(name):
    # 375 x 500 becomes 256 x 341.
    windows = [(58, 16, 282, 240), (0, 0, 224, 224), (117, 0, 341, 224), (0, 32, 224, 256), (117, 32, 341, 256)]
    views = views_of(shipped(name), 375, 500)
    assert views == [View(256, window, mirrored) for mirrored in (False, True) for window in windows]
    assert shipped(name).maps == (name == "ten_crop_maps")


def test_the_eighteen_views_at_one_scale_by_hand():
    # 300 x 400 stays as it is: 76 pixels are left above and below the window, 176 beside it.
    protocol = ViewProtocol(scales=[300], positions=list(POSITIONS), mirrored=True, maps=True)
    corners = {(left, top, left + 224, top + 224) for left in (0, 88, 176) for top in (0, 38, 76)}
    views = views_of(protocol, 300, 400)
    assert len(views) == 18
    assert {view.window for view in views if view.mirrored} == corners
    assert {view.window for view in views if not view.mirrored} == corners


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (480, 640), (32, 43)])
def test_multi_view_has_96_different_views_and_6_of_them_at_224(size):
    views = views_of(shipped("multi_view"), *size)
    assert len(views) == len(set(views)) == 96
    counts = [sum(view.scale == scale for view in views) for scale in (224, 256, 300, 360, 448, 560)]
    assert counts == [6, 18, 18, 18, 18, 18]
    full = views_of(shipped("multi_view_full"), *size)
    assert full[:96] == views
    assert full[96:] == [View(256, None, False), View(256, None, True)]


def test_a_square_image_has_one_window_at_224():
    assert len(views_of(shipped("multi_view"), 100, 100)) == 5 * 18 + 2


@given(images())
def test_windows_lie_in_the_resized_image_and_differ(size):
    for name in SHIPPED:
        protocol = shipped(name)
        views = views_of(protocol, *size)
        assert len(set(views)) == len(views)
        assert sum(view.mirrored for view in views) == (len(views) / 2 if protocol.mirrored else 0)
        for view in views:
            height, width = size_at_shorter_side(*size, view.scale)
            if view.window is not None:
                x0, y0, x1, y1 = view.window
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height
                assert (x1 - x0, y1 - y0) == (224, 224)


@given(images(), st.integers(32, 600))
def test_the_size_is_that_of_the_resized_image(size, side):
    assert min(size_at_shorter_side(*size, side)) == side


@pytest.mark.parametrize("size", [(7, 10), (10, 7), (11, 11), (13, 700), (700, 13), (1, 1), (1, 40)])
@pytest.mark.parametrize("side", [2, 7, 32])
def test_the_size_is_what_resizing_gives(size, side):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    assert resize_shorter_side(image, side).shape[1:] == size_at_shorter_side(*size, side)


def test_ten_crops_are_taken_where_training_takes_its_crops():
    assert shipped("ten_crop").positions == list(CROP_POSITIONS) == list(POSITIONS)[:5]


def test_the_same_views_at_another_scale():
    assert shipped("full_flip").at(180) == ViewProtocol(full_scales=[180], mirrored=True)
    assert shipped("center").at(224) == ViewProtocol(scales=[224], positions=["center"])
    assert shipped("center").at(180) is None


def test_a_protocol_is_described_in_words():
    assert shipped("center").text() == "224 crops (center) at shorter side 256"
    assert shipped("ten_crop").text() == "224 crops (centre and corners) at shorter side 256, each also mirrored"
    corner = ViewProtocol(scales=[256], positions=["top_left"])
    assert corner.text() == "224 crops (top left) at shorter side 256"
    sides = ViewProtocol(scales=[256], positions=["left", "right"], maps=True)
    assert sides.text().startswith("224 windows pooled from maps (left, right) at shorter side 256")
    assert shipped("multi_view_full").text() == (
        "224 windows pooled from maps (nine positions) at shorter side 224/256/300/360/448/560 + whole image at "
        "shorter side 256, each also mirrored"
    )


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("crop_side", [96, 112, 128, 180, 224, 448])
def test_shipped_protocols_follow_the_crop_side_of_the_run(name, crop_side):
    reference, followed = shipped(name), shipped(name, crop_side)
    if reference.scales:
        assert followed.view_size == crop_side
    for scale, at_224 in zip(
        followed.scales + followed.full_scales, reference.scales + reference.full_scales, strict=True
    ):
        assert abs(scale - at_224 * crop_side / 224) <= 0.5
        assert at_224 != 256 or scale == shorter_side_for(crop_side)
    changed = ("scales", "full_scales", "view_size")
    assert {k: v for k, v in vars(followed).items() if k not in changed} == {
        k: v for k, v in vars(reference).items() if k not in changed
    }


def test_the_protocols_for_crops_of_128():
    assert shipped("center", 128).text() == "128 crops (center) at shorter side 146"
    assert shipped("full", 128).full_scales == [146]
    assert shipped("multi_view", 128).scales == [128, 146, 171, 206, 256, 320]


def test_sizes_in_pixels_do_not_depend_on_the_run():
    given = {"scales": [300, "300/224"], "view_size": 200, "positions": ["center"]}
    assert in_pixels(given, 112) == {**given, "scales": [300, 150]}
    assert in_pixels({"scales": [300]}, 112) == {"scales": [300], "view_size": 112}


@pytest.mark.parametrize("value", ["256", "big", "1/0", "-1/2", "256/224 ", "1/2/3", "²/3", 2.5, None, "9" * 99 + "/1"])
def test_invalid_multiples_stay_to_be_refused(value):
    assert in_pixels({"full_scales": [value]}, 224)["full_scales"] == [value]


def test_the_views_that_a_network_without_a_pyramid_cannot_be_tested_on():
    small = build_backbone("zf5", width=0.03)
    baseline, at_180 = (SPPNet(small, None, 2, hidden=2, input_side=side) for side in (None, 180))
    pyramid = SPPNet(small, (2, 1), 2, hidden=2)
    assert {name for name in SHIPPED if shipped(name).unsuited_to(baseline) is None} == {"center", "ten_crop"}
    assert shipped("full").unsuited_to(baseline) == "whole images"
    assert shipped("ten_crop_maps").unsuited_to(baseline) == "windows pooled from feature maps"
    assert shipped("center").unsuited_to(at_180) == "crops of 224"
    crops = ViewProtocol(scales=[256], positions=["top"], view_size=180)
    assert [crops.unsuited_to(network) for network in (baseline, at_180)] == ["crops of 180", None]
    assert not any(protocol.unsuited_to(pyramid) for protocol in (crops, *map(shipped, SHIPPED)))


def test_the_smallest_views_are_one_pixel():
    assert views_of(ViewProtocol(full_scales=[1]), 1, 1) == [View(1, None, False)]
    window = ViewProtocol(scales=[1], positions=["center"], view_size=1)
    assert views_of(window, 3, 3) == [View(1, (0, 0, 1, 1), False)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs at least one view"),
        ({"scales": [256]}, "give both, or neither"),
        ({"positions": ["center"]}, "give both, or neither"),
        ({"scales": [256], "positions": ["centre"]}, "centre must be one of center, top_left"),
        ({"scales": [256, 256], "positions": ["center"]}, "must not repeat"),
        ({"scales": [200], "positions": ["center"]}, r"scales=\[200\]: must be at least view_size=224"),
        ({"full_scales": [0]}, "must be at least 1"),
        ({"full_scales": [256, 5000]}, r"full_scales=\[256, 5000\]: must be at most 4096 pixels"),
        ({"scales": [100000], "positions": ["center"]}, r"scales=\[100000\]: must be at most 4096 pixels"),
        ({"scales": [5], "positions": ["center"], "view_size": 0}, "must be at least 1"),
    ],
)
def test_invalid_protocols_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ViewProtocol(**options)
