"""The scorer against plain loops over crops, windows and whole images."""

import numpy as np
import pytest
import torch

from conftest import PngImages, make_image_folder, random_images
from references import mirrored_window, views_of
from sppnet.backbones import build_backbone
from sppnet.classify.scorer import (
    Scorer,
    score_images,
)
from sppnet.classify.views import ViewProtocol
from sppnet.data.batches import to_network_input
from sppnet.data.images import crop, decode_image, resize_shorter_side
from sppnet.data.sources import open_data
from sppnet.geometry import CROP_POSITIONS, POSITIONS, crop_to_cells, window_to_cells
from sppnet.network import SPPNet

TEN = {"scales": [72], "view_size": 64, "positions": list(POSITIONS)[:5], "mirrored": True}
MANY = {"scales": [64, 72, 95], "view_size": 64, "positions": list(POSITIONS), "mirrored": True, "maps": True}


@pytest.fixture(scope="module", params=["zf5", "overfeat5"])
def network(request):
    torch.manual_seed(0)
    backbone = build_backbone(request.param, width=0.1)
    net = SPPNet(backbone, (3, 2, 1), 3, hidden=16, initialization="fan_in", input_std=(58.0, 57.0, 57.0))
    torch.nn.init.normal_(net.fc8.weight)  # scores that differ clearly from view to view
    return net.eval()


def scores_of(network, images, protocol, pixels=10**6):
    scorer = Scorer(network, protocol, pixels=pixels)
    result = torch.full((len(images), network.num_classes), torch.nan)
    for indices, scores in score_images(scorer, images, range(len(images)), workers=0):
        assert result[indices].isnan().all()
        result[indices] = scores
    return result


def pixels_of(images, index, scale):
    return resize_shorter_side(decode_image(images.read(index), images.name(index)), scale)


def softmax(network, image):
    """Scores (classes,) of one uint8 image, in plain PyTorch."""
    with torch.inference_mode():
        return network(to_network_input(image[None], network.input_mean, network.input_std)).softmax(1)[0]


def test_full_is_the_network_itself_on_the_whole_image(network):
    images = random_images()
    scores = scores_of(network, images, ViewProtocol(full_scales=[72]))
    expected = [softmax(network, pixels_of(images, i, 72)) for i in range(len(images))]
    torch.testing.assert_close(scores, torch.stack(expected))


def test_full_aligned_is_the_aligned_network_on_the_whole_image(network):
    images = random_images()
    scores = scores_of(network, images, ViewProtocol(full_scales=[72], aligned=True))
    expected = [softmax(network.aligned(), pixels_of(images, i, 72)) for i in range(len(images))]
    torch.testing.assert_close(scores, torch.stack(expected))


def test_full_flip_averages_the_image_and_its_mirror(network):
    images = random_images()
    scores = scores_of(network, images, ViewProtocol(full_scales=[72], mirrored=True))
    for i, score in enumerate(scores):
        image = pixels_of(images, i, 72)
        both = [softmax(network, image), softmax(network, image.flip(-1))]
        torch.testing.assert_close(score, torch.stack(both).mean(0))


def test_ten_crop_is_a_loop_over_ten_crops(network):
    images = random_images()
    scores = scores_of(network, images, ViewProtocol(**TEN))
    for i, score in enumerate(scores):
        image = pixels_of(images, i, 72)
        height, width = image.shape[1:]
        corners = [(0, 0), (0, width - 64), (height - 64, 0), (height - 64, width - 64)]
        corners.append(((height - 64) // 2, (width - 64) // 2))
        crops = [image[:, top : top + 64, left : left + 64] for top, left in corners]
        views = [softmax(network, view) for crop in crops for view in (crop, crop.flip(-1))]
        torch.testing.assert_close(score, torch.stack(views).mean(0))


@pytest.mark.parametrize("aligned", [True, False])
def test_views_on_maps_are_a_loop_over_windows(network, aligned):
    images, protocol = random_images(), ViewProtocol(**MANY, full_scales=[72], aligned=aligned)
    scores = scores_of(network, images, protocol)
    tested = network.aligned() if aligned else network
    backbone = tested.backbone
    for i, score in enumerate(scores):
        views = []
        for view in views_of(protocol, *images.pixels[i].shape[:2]):
            image = pixels_of(images, i, view.scale)
            window = view.window
            if view.mirrored:
                window = window and mirrored_window(window, image.shape[2])
                image = image.flip(-1)
            with torch.inference_mode():
                maps = tested.maps(to_network_input(image[None], network.input_mean, network.input_std))
                if window is not None:
                    size = (maps.shape[2], maps.shape[3])
                    if aligned:
                        x0, y0, x1, y1 = window_to_cells(window, backbone.stride, backbone.offset, size)
                    else:
                        crop_size = tuple(backbone(torch.zeros(1, 3, 64, 64)).shape[2:])
                        x0, y0, x1, y1 = crop_to_cells(window, backbone.stride, crop_size, size)
                    maps = maps[:, :, y0:y1, x0:x1]
                views.append(tested.classify(tested.pool(maps)).softmax(1)[0])
        torch.testing.assert_close(score, torch.stack(views).mean(0))


def test_a_window_as_large_as_the_image_is_the_crop(network):
    images = random_images([(64, 64), (72, 72)])
    one = {"scales": [64], "view_size": 64, "positions": ["center"], "mirrored": True}
    crops, windows = (scores_of(network, images, ViewProtocol(**one, maps=maps)) for maps in (False, True))
    torch.testing.assert_close(windows, crops)


@pytest.mark.parametrize("protocol", [TEN, {**TEN, "maps": True}, MANY, {"full_scales": [72], "mirrored": True}])
def test_an_image_and_its_mirror_get_the_same_scores_from_mirrored_views(network, protocol):
    # Odd margins would shift the middle windows of the mirror image by one pixel, so sides are even here.
    images = random_images([(72, 96), (96, 72), (72, 72)])
    mirrored = PngImages([np.ascontiguousarray(pixels[:, ::-1]) for pixels in images.pixels])
    protocol = ViewProtocol(**{**protocol, **({"scales": [72]} if "scales" in protocol else {})})
    torch.testing.assert_close(scores_of(network, images, protocol), scores_of(network, mirrored, protocol))


def test_a_mirrored_view_is_the_view_of_the_mirrored_image(network):
    images, window = random_images([(72, 96)]), {"scales": [72], "view_size": 64}
    mirrored = PngImages([np.ascontiguousarray(images.pixels[0][:, ::-1])])
    left, right = ({**window, "positions": [name], "maps": True} for name in ("top_left", "top_right"))
    both = scores_of(network, images, ViewProtocol(**left, mirrored=True))
    plain = scores_of(network, images, ViewProtocol(**left))
    torch.testing.assert_close(2 * both - plain, scores_of(network, mirrored, ViewProtocol(**right)))


def striped_images(count, seed):
    """Three classes: a square of stripes that lie, stand or cross, anywhere on a wide image of noise."""
    random = np.random.default_rng(seed)
    pixels, labels = [], np.arange(count) % 3
    for label in labels:
        width = int(random.integers(112, 225))
        rows, columns = np.mgrid[:64, :64] // int(random.integers(6, 12)) % 2
        square = np.zeros((112, width))
        top, left = random.integers(0, 49), random.integers(0, width - 63)
        square[top : top + 64, left : left + 64] = (rows, columns, rows ^ columns)[label]
        noise = random.normal(0, 40, (112, width, 3))
        image = 60 + square[..., None] * random.uniform(20, 100, 3) + noise
        pixels.append(image.clip(0, 255).astype(np.uint8))
    images = PngImages(pixels)
    images.labels = labels
    return images


@pytest.mark.slow
def test_ten_windows_on_maps_come_close_to_ten_crops_on_a_trained_network():
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.1, normalization="none")
    net = SPPNet(backbone, (3, 2, 1), 3, hidden=32, dropout=0, initialization="fan_in", input_std=(58.0, 57.0, 57.0))
    train, test = striped_images(90, seed=0), striped_images(90, seed=1)
    images = torch.stack(
        [crop(decode_image(train.read(i), train.name(i)), 96, CROP_POSITIONS[i % 5]) for i in range(len(train))]
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for step in range(60):
        batch = torch.arange(step * 30, step * 30 + 30) % 90
        logits = net(to_network_input(images[batch], net.input_mean, net.input_std))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(train.labels)[batch]).backward()
        optimizer.step()

    def scores(positions, maps):
        views = ViewProtocol(scales=[112], view_size=96, positions=positions, mirrored=True, maps=maps)
        return scores_of(net.eval(), test, views)

    def distance(these, others):
        return (these - others).abs().mean()

    # 96 pixels are six cells, so zeros around a crop and pixels around a window differ much. Chance errs on 2 of 3.
    crops, maps = (scores(list(POSITIONS)[:5], maps) for maps in (False, True))
    wrong = [(result.argmax(1).numpy() != test.labels).mean() for result in (crops, maps)]
    assert wrong[0] <= 0.35
    assert abs(wrong[0] - wrong[1]) <= 0.12
    left, right = (scores([side], maps=False) for side in ("left", "right"))
    for side, other, name in ((left, right, "left"), (right, left, "right")):
        window = scores([name], maps=True)
        assert distance(window, side) < 0.75 * distance(window, other)


def test_all_views_of_a_constant_image_away_from_its_borders_score_alike(network):
    stride = network.backbone.stride
    image = torch.full((1, 3, 40 * stride, 40 * stride), 90.0)
    aligned = network.aligned()
    with torch.inference_mode():
        maps = aligned.maps(to_network_input(image, network.input_mean, network.input_std))
        inner = maps[:, :, 15:25, 15:25]
        torch.testing.assert_close(inner, inner[:, :, :1, :1].expand_as(inner))
        scores = [
            aligned.classify(aligned.pool(maps[:, :, y : y + 5, x : x + 5])) for x, y in ((15, 15), (20, 17), (16, 20))
        ]
    torch.testing.assert_close(scores[1], scores[0])
    torch.testing.assert_close(scores[2], scores[0])


@pytest.mark.parametrize("pixels", [1, 64 * 64, 10**7])
@pytest.mark.parametrize("protocol", [TEN, MANY, {"full_scales": [72, 95]}])
def test_the_limit_of_a_pass_changes_no_score(network, protocol, pixels):
    images = random_images([(70, 93)] * 5 + [(93, 70)] * 2)
    protocol = ViewProtocol(**protocol)
    torch.testing.assert_close(scores_of(network, images, protocol, pixels), scores_of(network, images, protocol))


@pytest.mark.parametrize("pixels", [64 * 64, 3 * 64 * 64, 10**6])
def test_no_forward_pass_is_larger_than_the_limit(network, pixels, monkeypatch):
    seen = []
    monkeypatch.setattr(network, "forward", lambda x, forward=network.forward: (seen.append(x), forward(x))[1])
    scores_of(network, random_images([(70, 93)] * 4), ViewProtocol(**TEN), pixels)
    assert sum(len(x) for x in seen) == 40
    assert all(x[:, 0].numel() <= pixels for x in seen)


def test_images_of_equal_size_share_a_pass_and_waiting_ones_are_bounded(network, monkeypatch):
    calls = []
    call = Scorer.__call__
    monkeypatch.setattr(Scorer, "__call__", lambda self, batch: (calls.append(len(batch)), call(self, batch))[1])
    images = random_images([(70, 93), (93, 70)] * 4)
    scores_of(network, images, ViewProtocol(full_scales=[64]))
    assert calls == [4, 4]
    calls.clear()
    monkeypatch.setattr("sppnet.data.inputs.MAX_WAITING_BYTES", 1)
    scores_of(network, images, ViewProtocol(full_scales=[64]))
    assert calls == [1] * 8


@pytest.mark.parametrize("protocol", [TEN, MANY])
def test_loader_processes_change_no_score(network, protocol):
    images, protocol = random_images(), ViewProtocol(**protocol)
    scorer = Scorer(network, protocol, pixels=10**6)
    result = torch.full((len(images), network.num_classes), torch.nan)
    for indices, scores in score_images(scorer, images, range(len(images)), workers=2):
        result[indices] = scores
    torch.testing.assert_close(result, scores_of(network, images, protocol))


def test_views_that_need_a_pyramid_are_refused_without_one(network):
    plain = SPPNet(build_backbone("zf5", width=0.05), None, 3, hidden=8).eval()
    Scorer(plain, ViewProtocol(scales=[256], positions=["center"]), pixels=1)
    for options in ({"full_scales": [224]}, {**MANY}, {**TEN}):
        with pytest.raises(ValueError, match="the network has no pyramid and takes 224 x 224 crops only"):
            Scorer(plain, ViewProtocol(**options), pixels=1)
    at_64 = SPPNet(build_backbone("zf5", width=0.05), None, 3, hidden=8, input_side=64).eval()
    Scorer(at_64, ViewProtocol(scales=[80], positions=["center"], view_size=64), pixels=1)
    with pytest.raises(ValueError, match=r"crops of 224: .* takes 64 x 64 crops only"):
        Scorer(at_64, ViewProtocol(scales=[256], positions=["center"]), pixels=1)


def test_views_smaller_than_the_backbone_needs_are_refused(network):
    smallest = network.backbone.smallest_input
    with pytest.raises(ValueError, match=f"the backbone needs at least {smallest}"):
        Scorer(network, ViewProtocol(full_scales=[smallest - 1]), pixels=1)


def test_an_unreadable_file_is_an_error_with_its_name(network, tmp_path):
    root = make_image_folder(tmp_path / "images", train=2, val=2)
    (root / "val" / "dog" / "1.jpg").write_bytes(b"no image")
    data = open_data("folder", root=str(root)).val
    with pytest.raises(ValueError, match=r"val/dog/1\.jpg"):
        scores_of(network, data, ViewProtocol(full_scales=[64]))


def test_bf16_scores_are_close_to_those_of_float32(network):
    images, protocol = random_images(), ViewProtocol(**MANY)
    scorer = Scorer(network, protocol, pixels=10**6, autocast=torch.bfloat16)
    for indices, scores in score_images(scorer, images, range(len(images)), workers=0):
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, scores_of(network, images, protocol)[indices], atol=0.05, rtol=0)
