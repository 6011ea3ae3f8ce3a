"""Feature maps of images kept on disk in float16: a file for every image and scale; an interrupted computation resumes.

Letters: n images, C channels, (H, W) cells of a map.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.data.inputs import Inputs, load_inputs
from sppnet.data.sources import Images, content_digests
from sppnet.detect.maps import check_scales, map_of, resized
from sppnet.network import SPPNet, backbone_digest
from sppnet.runtime.files import atomic_file, write_json
from sppnet.runtime.hardware import Hardware, prepare_device, run_on_devices
from sppnet.runtime.names import printable
from sppnet.runtime.processes import explained_loader_failures
from sppnet.runtime.progress import Progress

# The version of the code that makes maps. Raise it when maps of unchanged settings change.
MAP_RULES = 1


@dataclass(frozen=True, eq=False)
class MapFiles:
    """The maps of images, on disk. Images of equal content share their files.

    folder: of one network, padding and precision.
    digests: uint8 (n, 16), `content_digests` of the images.
    scales: shorter sides of the resized images.
    mirrored: whether there are maps of the mirror images too.
    channels: of the maps.
    """

    folder: Path
    digests: np.ndarray
    scales: tuple[int, ...]
    mirrored: bool
    channels: int

    def path(self, index: int, scale: int, mirrored: bool = False) -> Path:
        """The file of a map: a .npy of float16 (H, W, C)."""
        name = bytes(self.digests[index]).hex()
        # In 256 folders: writing a file lists its folder.
        return self.folder / name[:2] / f"{name}-{scale}{'-mirrored' * mirrored}.npy"

    def read(self, index: int, *, mirrored: bool = False) -> list[Tensor]:
        """Reads the maps of an image, or of its mirror image: float16 (1, C, H, W) per scale, in channels_last.

        Raises FileNotFoundError for a missing file, ValueError for a damaged one.
        """
        paths = [self.path(index, scale, mirrored) for scale in self.scales]
        return [torch.from_numpy(np.array(_open_map(path, self.channels))).permute(2, 0, 1)[None] for path in paths]

    def read_cells(self, index: int, scale: int, cells: tuple[int, int, int, int], *, mirrored: bool = False) -> Tensor:
        """Reads some cells, half-open (x0, y0, x1, y1), of one map: float16 (1, C, H, W). `scale` is its index."""
        x0, y0, x1, y1 = cells
        values = _open_map(self.path(index, self.scales[scale], mirrored), self.channels)
        return torch.from_numpy(np.array(values[y0:y1, x0:x1])).permute(2, 0, 1)[None]

    def missing(self, index: int) -> list[tuple[int, bool]]:
        """Returns (scale, mirrored) of every map of an image that has no file, or a damaged one."""
        sides = (False, True) if self.mirrored else (False,)
        wanted = [(scale, side) for scale in self.scales for side in sides]
        return [(scale, side) for scale, side in wanted if not _is_whole(self.path(index, scale, side), self.channels)]


def _open_map(path: Path, channels: int) -> np.ndarray:
    """Opens the file of a map, memory-mapped. Raises FileNotFoundError, or ValueError for a damaged file."""
    try:
        values: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(f"{path}: damaged; computing the maps again replaces it") from error
    if values.dtype != np.float16 or values.ndim != 3 or values.shape[2] != channels:
        raise ValueError(f"{path}: {values.dtype} of shape {values.shape}, expected float16 (H, W, {channels})")
    return values


def _is_whole(path: Path, channels: int) -> bool:
    try:
        _open_map(path, channels)
    except (FileNotFoundError, ValueError):
        return False
    return True


def compute_maps(
    network: SPPNet,
    images: Images,
    scales: Sequence[int],
    folder: Path,
    *,
    mirrored: bool = False,
    aligned: bool = False,
    digests: np.ndarray | None = None,
    hardware: Hardware | None = None,
    title: str = "maps",
) -> MapFiles:
    """Computes the feature maps of images at several scales by `image_maps`, and keeps them in `folder`.

    Maps that the folder holds are used again if backbone, padding, precision, scale and the content of the image are
    the same. Every map has its name only once it is complete: an interrupted computation resumes, and several processes
    may compute maps into the same folder.

    Args:
        network: in eval mode. Its fully connected layers do not matter.
        images: the images.
        scales: shorter sides of the resized images in pixels.
        folder: where maps are kept, each kind in a folder of its own.
        mirrored: whether to compute the maps of the mirror images too.
        aligned: whether images go through `network.aligned()`.
        digests: `content_digests` of the images; None computes them.
        hardware: what to run on; None is what suits the machine.
        title: the name of the computation in messages.

    Raises ValueError as `image_maps` does, naming the image, and UnreadableImage for an image that cannot be read.
    """
    check_scales(network, scales)
    hardware = hardware or Hardware()
    digests = content_digests(images, "reading the images") if digests is None else digests
    identity = {
        "rules": MAP_RULES,
        "backbone": backbone_digest(network),
        "aligned": aligned,
        "precision": "float32" if hardware.autocast is None else "bf16",
    }
    kind = folder / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    files = MapFiles(kind, digests, tuple(scales), mirrored, network.backbone.channels)

    left = [index for index in range(len(images)) if files.missing(index)]
    if not left:
        print(f"{title}: computed already ({printable(str(kind))})", flush=True)
        return files
    damaged = [path for index in left for key in files.missing(index) if (path := files.path(index, *key)).exists()]
    for path in damaged:
        print(f"{printable(str(path))}: damaged, computed again", flush=True)
    if len(left) < len(images):
        print(f"{title}: resuming after {len(images) - len(left):,} of {len(images):,} images", flush=True)
    write_json(kind / "about.json", identity)
    network = network.to(memory_format=torch.channels_last)
    network = network.aligned().eval() if aligned else network
    run_on_devices(_compute_share, (_Computation(network, images, left, files, hardware, title),), hardware)
    return files


class _Computation(NamedTuple):
    """The argument of `_compute_share`: all that a process needs to compute the maps of its share of the images."""

    network: SPPNet
    images: Images
    left: list[int]  # the images that lack a map
    files: MapFiles
    hardware: Hardware
    title: str


def _compute_share(rank: int, work: _Computation) -> None:
    """Computes the maps of this process's share of the images."""
    hardware, files = work.hardware, work.files
    network = work.network.to(prepare_device(rank, hardware))
    share = work.left[rank :: hardware.processes]

    with contextlib.ExitStack() as stack:
        # Around the whole loop, autocast converts each weight once instead of once per map.
        autocast = torch.autocast(hardware.device, hardware.autocast, enabled=hardware.autocast is not None)
        stack.enter_context(autocast)
        # The shares of all processes differ by at most one image, so one of them shows the progress of all.
        progress = stack.enter_context(Progress(work.title, len(share))) if rank == 0 else None
        stack.enter_context(explained_loader_failures("hardware.workers"))
        prepare = partial(resized, scales=files.scales)
        pixels = sum(4 * scale**2 // 3 for scale in files.scales)  # of a 4:3 image
        loaded = load_inputs(work.images, prepare, share, pixels=pixels, workers=hardware.loaders)
        stack.enter_context(contextlib.closing(loaded))

        for inputs in loaded:
            _compute_missing(network, inputs, work)
            if progress is not None:
                progress.add(1)


def _compute_missing(network: SPPNet, inputs: Inputs, work: _Computation) -> None:
    """Computes and writes the maps that an image lacks; another process may have written some by now."""
    files, index = work.files, inputs.image_index
    pixels = dict(zip(files.scales, inputs.tensors, strict=True))
    for scale, mirrored in files.missing(index):
        try:
            maps = map_of(network, pixels[scale], mirrored=mirrored, autocast=work.hardware.autocast)
        except ValueError as error:
            raise ValueError(f"{printable(work.images.name(index))}: {error}") from error
        _write_map(files.path(index, scale, mirrored), maps)


def _write_map(path: Path, maps: Tensor) -> None:
    """Writes a map (1, C, H, W) as (H, W, C), the order in which windows are pooled."""
    content = io.BytesIO()  # on a full disk np.save would report only the bytes written
    np.save(content, maps[0].permute(1, 2, 0).contiguous().cpu().numpy())
    with atomic_file(path) as file:
        file.write(content.getbuffer())
