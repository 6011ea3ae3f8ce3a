"""Maps on disk are those of `image_maps`; they are used again, and computed again where they are not those wanted."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import PngImages, random_images
from forks import exit_code, in_a_process, kill_this_process, start_process
from sppnet.backbones import build_backbone
from sppnet.data.images import UnreadableImage
from sppnet.data.sources import content_digests
from sppnet.detect import map_files as map_files_module
from sppnet.detect.map_files import compute_maps
from sppnet.detect.maps import image_maps
from sppnet.network import SPPNet, backbone_digest
from sppnet.runtime.hardware import Hardware

CPU = Hardware(accelerator="cpu", workers=0, precision="float32")
SIZES = [(70, 93), (93, 70), (1, 1), (5, 200), (64, 64), (33, 47)]
SCALES = (64, 97)


def build(seed=0, **options):
    torch.manual_seed(seed)
    options = {"hidden": 8, "initialization": "fan_in", "input_std": (58.0, 57.0, 56.0)} | options
    return SPPNet(build_backbone("zf5", width=0.05), (3, 2, 1), 4, **options).eval()


@pytest.fixture
def network():
    return build()


class Watched(PngImages):
    """Images that note which of them were read, and do something before one of them is."""

    def __init__(self, pixels, index=None, act=None):
        super().__init__(pixels)
        self.was_read, self.index, self.act = [], index, act

    def read(self, index):
        self.was_read.append(index)
        if index == self.index:
            self.act()
        return super().read(index)


def watched(sizes=SIZES, seed=0, index=None, act=None):
    return Watched(random_images(sizes, seed).pixels, index, act)


def compute(network, images, folder, scales=SCALES, **options):
    digests = content_digests(PngImages(images.pixels), "reading")
    return compute_maps(network, images, scales, folder, **({"hardware": CPU, "digests": digests} | options))


def count_maps(network):
    """A list that grows by the size of the input of every forward pass."""
    passes = []
    network.backbone.conv1.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0].shape[2:]))
    return passes


def image(images, index):
    return torch.from_numpy(images.pixels[index]).permute(2, 0, 1)


def assert_maps_of(files, network, images, scales=SCALES, mirrored=False, autocast=None):
    for index in range(len(images)):
        expected = image_maps(network, image(images, index), scales, mirrored=mirrored, autocast=autocast)
        found = files.read(index, mirrored=mirrored)
        assert len(found) == len(expected)
        for map_, other in zip(found, expected, strict=True):
            assert map_.dtype == torch.float16
            assert map_.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(map_, other)


def all_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_maps_on_disk_are_those_of_every_image(network, tmp_path):
    images = watched()
    files = compute(network, images, tmp_path, mirrored=True)
    assert_maps_of(files, network, images)
    assert_maps_of(files, network, images, mirrored=True)
    assert len(all_files(tmp_path)) == 6 * 2 * 2 + 1


def test_aligned_and_bf16_maps(network, tmp_path):
    images = watched()
    assert_maps_of(compute(network, images, tmp_path, aligned=True), network.aligned().eval(), images)
    bf16 = Hardware(accelerator="cpu", workers=0, precision="bf16")
    assert_maps_of(compute(network, images, tmp_path, hardware=bf16), network, images, autocast=torch.bfloat16)


def test_digests_are_computed_where_none_are_given(network, tmp_path):
    images = watched()
    assert_maps_of(compute(network, images, tmp_path, digests=None), network, images)


def test_loader_processes_change_nothing(network, tmp_path):
    images = random_images(SIZES)
    hardware = Hardware(accelerator="cpu", workers=2, precision="float32")
    assert_maps_of(compute(network, images, tmp_path, hardware=hardware), network, images)


def test_a_second_call_reads_no_image_and_runs_no_forward_pass(network, tmp_path, capsys):
    images = watched()
    files = compute(network, images, tmp_path)
    passes = count_maps(network)
    images.was_read.clear()
    again = compute(network, images, tmp_path, title="photos")
    assert (passes, images.was_read) == ([], [])
    assert f"photos: computed already ({files.folder})" in capsys.readouterr().out
    assert_maps_of(again, network, images)


def test_only_missing_maps_are_computed(network, tmp_path, capsys):
    images = watched()
    files = compute(network, images, tmp_path, scales=(64,))
    files.path(4, 64).unlink()
    images.was_read.clear()
    passes = count_maps(network)
    compute(network, images, tmp_path, scales=(64,))
    assert (images.was_read, passes) == ([4], [(64, 64)])
    assert "maps: resuming after 5 of 6 images" in capsys.readouterr().out
    passes.clear()
    both = compute(network, images, tmp_path, scales=(64, 97))
    assert [min(size) for size in passes] == [97] * 6
    assert_maps_of(both, network, images)


def test_images_of_equal_content_share_their_maps(network, tmp_path):
    pixels = random_images([(64, 64)] * 2).pixels
    images = PngImages([pixels[0], pixels[1], pixels[0]])
    passes = count_maps(network)
    assert_maps_of(compute(network, images, tmp_path, scales=(64,)), network, images, scales=(64,))
    assert len(passes) == 2 + 3


def change_fc(network):
    with torch.no_grad():
        network.fc6.weight.add_(1)
    return network


def change_conv(network):
    with torch.no_grad():
        network.backbone.conv5.bias[-1] += 1e-3
    return network


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 0),
        ({"network": change_fc(build())}, 0),
        ({"scales": (97, 64)}, 0),
        ({"network": change_conv(build())}, 12),
        ({"network": build(seed=1)}, 12),
        ({"network": build(input_mean=(1.0, 2.0, 3.0))}, 12),
        ({"aligned": True}, 12),
        ({"hardware": Hardware(accelerator="cpu", workers=0, precision="bf16")}, 12),
        ({"images": watched(seed=1)}, 12),
        ({"mirrored": True}, 12),
        ({"scales": (64, 98)}, 6),
    ],
)
def test_maps_are_computed_again_if_anything_but_fc_layers_changes(tmp_path, options, count, monkeypatch):
    base = {"network": build(), "images": watched(), "scales": SCALES}
    compute(**base, folder=tmp_path)
    written = []
    write_map = map_files_module._write_map
    monkeypatch.setattr(
        map_files_module, "_write_map", lambda path, maps: written.append(path) or write_map(path, maps)
    )
    compute(**base | options, folder=tmp_path)
    assert len(written) == count


def test_other_rules_compute_maps_again(network, tmp_path, monkeypatch):
    first = compute(network, watched(), tmp_path)
    monkeypatch.setattr(map_files_module, "MAP_RULES", map_files_module.MAP_RULES + 1)
    assert compute(network, watched(), tmp_path).folder != first.folder


def test_the_digest_of_a_backbone_leaves_out_the_fully_connected_layers():
    digest = backbone_digest(build())
    assert backbone_digest(build().to(memory_format=torch.channels_last)) == digest
    assert backbone_digest(change_fc(build())) == digest
    assert (
        len({digest, *(backbone_digest(n) for n in (change_conv(build()), build(1), build(input_std=(1, 1, 1))))}) == 4
    )


# Damaged files.


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def save(array):
    return lambda path: np.save(path, array, allow_pickle=True)


DAMAGES = [
    truncate,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("not an array"),
    save(np.zeros((3, 3, 13), np.float32)),
    save(np.zeros((3, 3, 12), np.float16)),
    save(np.zeros((3, 13), np.float16)),
    save(np.array([{}], object)),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_again_with_one_line(network, tmp_path, damage, capsys):
    images = watched()
    files = compute(network, images, tmp_path)
    path = files.path(1, 97)
    damage(path)
    with pytest.raises(ValueError, match=rf"^{path}: "):
        files.read(1)
    capsys.readouterr()
    images.was_read.clear()
    assert_maps_of(compute(network, images, tmp_path), network, images)
    assert images.was_read == [1]
    assert capsys.readouterr().out.splitlines().count(f"{path}: damaged, computed again") == 1


def test_reading_maps_that_were_removed_is_an_error(network, tmp_path):
    files = compute(network, watched(), tmp_path)
    files.path(0, 64).unlink()
    with pytest.raises(FileNotFoundError):
        files.read(0)


# Interruptions and several processes.


def test_a_killed_computation_resumes(network, tmp_path):
    sizes = [(64, 64)] * 30
    killed = watched(sizes, index=29, act=kill_this_process)
    assert in_a_process(lambda: compute(network, killed, tmp_path)) == -signal.SIGKILL
    done = len(list(tmp_path.rglob("*.npy")))
    assert 0 < done < 60
    images = watched(sizes)
    passes = count_maps(network)
    files = compute(network, images, tmp_path)
    assert len(passes) == 60 - done
    assert_maps_of(files, network, images)


def test_a_process_killed_while_it_writes_leaves_no_damaged_map(network, tmp_path, monkeypatch):
    images = watched([(64, 64)] * 3)

    replace = Path.replace

    def replace_or_die(source, target):
        return kill_this_process() if target.suffix == ".npy" else replace(source, target)

    def work():
        monkeypatch.setattr(Path, "replace", replace_or_die)
        compute(network, images, tmp_path)

    assert in_a_process(work) == -signal.SIGKILL
    assert list(tmp_path.rglob("*.npy.partial*"))
    assert not list(tmp_path.rglob("*.npy"))
    assert_maps_of(compute(network, images, tmp_path), network, images)
    assert not list(tmp_path.rglob("*.npy.partial*"))


def test_two_processes_at_once(network, tmp_path):
    images = watched([(64, 64)] * 10)
    processes = [start_process(lambda: compute(network, images, tmp_path)) for _ in range(2)]
    assert [exit_code(process) for process in processes] == [0, 0]
    passes = count_maps(network)
    files = compute(network, images, tmp_path)
    assert not passes
    assert_maps_of(files, network, images)
    assert len(all_files(tmp_path)) == 21


# Errors.


def test_maps_that_are_not_finite_name_the_image(network, tmp_path):
    with torch.no_grad():
        network.backbone.conv5.weight.mul_(1e8)
    with pytest.raises(ValueError, match=r"^0\.png: its feature maps are not finite, or beyond the range of float16"):
        compute(network, watched(), tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_an_unreadable_image_is_named(network, tmp_path):
    def fail():
        raise UnreadableImage("2.png: gone")

    with pytest.raises(UnreadableImage, match=r"^2\.png: gone; repair the file, or skip it with exclude=\[2\.png\]$"):
        compute(network, watched(index=2, act=fail), tmp_path)


@pytest.mark.slow
def test_two_devices_share_the_images(network, tmp_path):
    images = random_images(SIZES)
    hardware = Hardware(accelerator="cpu", devices=2, workers=0, precision="float32")
    assert_maps_of(compute(network, images, tmp_path, hardware=hardware), network, images)
