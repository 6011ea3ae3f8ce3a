"""Extracts features of images by layers of a frozen network, on one or several devices.

Shape letters: N images of equal size, C filters, h and w cells of a map, d values of a feature.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.data.batches import resize_batch, to_network_input
from sppnet.data.images import crop, resize_shorter_side
from sppnet.data.inputs import Inputs, load_groups
from sppnet.data.sources import Images, content_digests
from sppnet.geometry import LARGEST_SCALE
from sppnet.network import SPPNet, weights_digest
from sppnet.pyramid import SpatialPyramidPool
from sppnet.results.transfers import PIXELS
from sppnet.runtime.devices import sent_to
from sppnet.runtime.hardware import Hardware, prepare_device, run_on_devices
from sppnet.runtime.names import check_names, printable
from sppnet.runtime.processes import explained_loader_failures
from sppnet.runtime.progress import Progress
from sppnet.transfer.feature_files import Features, folder_lock, make_features, open_features, read_saved_features

# The version of the code that makes features. Raise it when features of unchanged settings change.
FEATURE_RULES = 1

PIXELS_SIDE = 16  # of the images that are features themselves, under the name PIXELS: a baseline

SECONDS_BETWEEN_MARKS = 20.0


def full_view(image: Tensor, scale: int) -> Tensor:
    """Resizes the whole image so that its shorter side is `scale`: uint8 (3, h, w) -> (3, h', w')."""
    return resize_shorter_side(image, scale)


def crop_view(image: Tensor, scale: int) -> Tensor:
    """Cuts the central square out of `full_view`: uint8 (3, h, w) -> (3, scale, scale)."""
    return crop(resize_shorter_side(image, scale), scale, "center")


def warp_view(image: Tensor, scale: int) -> Tensor:
    """Resizes the image to a square, whatever its aspect: uint8 (3, h, w) -> (3, scale, scale)."""
    return F.interpolate(image[None], (scale, scale), mode="bilinear", antialias=True)[0]


# How an image is resized and cropped for the network (arXiv:1406.4729v4, §3.2 and §3.3).
VIEWS = {"full": full_view, "crop": crop_view, "warp": warp_view}


def extract_features(
    network: SPPNet,
    images: Images,
    layers: Sequence[str],
    *,
    scale: int = 224,
    view: str = "full",
    aligned: bool = False,
    folder: Path,
    digests: np.ndarray | None = None,
    weights: str | None = None,
    hardware: Hardware | None = None,
    title: str = "features",
) -> dict[str, Features]:
    """Extracts features by several layers from one forward pass per image, and keeps them in `folder`/LAYER.

    Features are the outputs of `SPPNet.features`, flattened and l2-normalized. Maps of whole images differ in size, so
    they are first max-pooled to n x n bins, n being the largest level of the pyramid. Every image then has a feature of
    the same length.

    Features that the folder holds are used again if network, view, scale, precision and the image (its name and
    content) are the same; an interrupted extraction resumes.

    Args:
        network: a frozen network, in eval mode.
        images: the images.
        layers: names of `SPPNet.layers`, or PIXELS.
        scale: the shorter side in pixels, or the side of the square views.
        view: a name of VIEWS.
        aligned: whether images go through `network.aligned()`.
        folder: where the features are kept.
        digests: `content_digests` of the images; None computes them.
        weights: `weights_digest` of the network; None computes it.
        hardware: what to run on; None is what suits the machine.
        title: the name of the extraction in messages.

    Returns the features by layer, one row per image in the order of `images`.

    Raises ValueError for an unknown layer or view, a scale out of range, no images, a network in training mode, and
    features that are not finite; UnreadableImage for an image that cannot be read.
    """
    if not len(images):
        raise ValueError(f"{title}: no images")
    if network.training:
        raise ValueError(f"{title}: the network is in training mode, in which features are random; call eval() first")
    check_view(network, layers, view, scale)

    hardware = hardware or Hardware()
    digests = content_digests(images, "reading the images") if digests is None else digests
    build_extractor = partial(
        FeatureExtractor, view=view, scale=scale, aligned=aligned, pixels=hardware.pixels, autocast=hardware.autocast
    )
    identity = {
        "rules": FEATURE_RULES,
        "network": weights or weights_digest(network),
        "view": view,
        "scale": scale,
        "aligned": aligned,
        "precision": "float32" if hardware.autocast is None else "bf16",
    }

    with contextlib.ExitStack() as stack:
        for layer in sorted(set(layers)):  # every process locks in the same order
            stack.enter_context(folder_lock(folder / layer))
        found = _open_or_make(network, build_extractor, layers, folder, identity, images, digests)

        left = np.flatnonzero(~np.all([features.done for features in found.values()], axis=0))
        if not len(left):
            print(f"{title}: extracted already ({printable(str(folder))})", flush=True)
            return found
        if len(left) < len(images):
            print(f"{title}: resuming after {len(images) - len(left):,} of {len(images):,} images", flush=True)
        missing = [layer for layer, features in found.items() if not features.done.all()]
        build = partial(build_extractor, layers=missing)
        work = _Extraction(network, build, images, left, folder, hardware, title)
        run_on_devices(_extract_share, (work,), hardware)

    if not all(features.done.all() for features in found.values()):
        raise RuntimeError(f"{title}: features of some images were not extracted")
    # Opened under the locks: by now another process may have replaced the files by features of other images.
    return found


def _open_or_make(
    network: SPPNet,
    build_extractor: Callable[..., "FeatureExtractor"],
    layers: Sequence[str],
    folder: Path,
    identity: dict[str, Any],
    images: Images,
    digests: np.ndarray,
) -> dict[str, Features]:
    """Opens the features of every layer in its folder, or makes new files for those that are not the ones asked for.

    Runs the network only for the latter, to learn the lengths of their features.
    """
    names = np.array([images.name(i) for i in range(len(images))])
    identities = {layer: {**identity, "layer": layer} for layer in layers}
    saved = {layer: read_saved_features(folder / layer, identities[layer]) for layer in identities}
    found = {layer: old.features for layer, old in saved.items() if old is not None and old.are_of(names, digests)}

    if absent := [layer for layer in identities if layer not in found]:
        lengths = build_extractor(network, layers=absent).lengths()
        for layer in absent:
            found[layer] = make_features(
                folder / layer, identities[layer], names, digests, lengths[layer], saved[layer]
            )
    return {layer: found[layer] for layer in identities}


class FeatureExtractor:
    """Computes features of images by several layers from one forward pass.

    Args:
        network: on its device, in eval mode.
        layers: names of `SPPNet.layers`, or PIXELS.
        view: a name of VIEWS.
        scale: the shorter side in pixels, or the side of the square views.
        aligned: whether images go through `network.aligned()`.
        pixels: input pixels of one forward pass, which limits the memory; a single image may have more.
        autocast: the dtype of convolutions, or None for float32.

    Raises ValueError for an unknown layer or view, and for a scale that does not suit the network.
    """

    def __init__(
        self,
        network: SPPNet,
        *,
        layers: Sequence[str],
        view: str,
        scale: int,
        aligned: bool = False,
        pixels: int = 2_000_000,
        autocast: torch.dtype | None = None,
    ) -> None:
        check_view(network, layers, view, scale)
        self.all_layers = tuple(layers)
        self.layers = [layer for layer in layers if layer != PIXELS]
        self.view, self.scale, self.pixels, self.autocast = view, scale, pixels, autocast
        network = network.to(memory_format=torch.channels_last)
        self.network = network.aligned().eval() if aligned else network
        self.device = network.fc8.weight.device
        # Maps of whole images are pooled to the finest grid of the pyramid.
        self.grid = SpatialPyramidPool((max(network.pyramid.levels),)) if view == "full" else None

    @torch.no_grad()  # in inference mode autocast would convert every weight again in every call
    def __call__(self, batch: Sequence[Inputs]) -> dict[str, np.ndarray]:
        """Computes the features of images of equal size: float16 (N, d) by layer, l2-normalized in float32."""
        pixels = sent_to(torch.stack([inputs.tensors[0] for inputs in batch]), self.device)
        images = pixels.permute(0, 3, 1, 2)
        mean, std = self.network.input_mean, self.network.input_std

        outputs: dict[str, Tensor] = {}
        if self.layers:
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                outputs = self.network.layer_outputs(to_network_input(images, mean, std), self.layers)
        if PIXELS in self.all_layers:
            outputs[PIXELS] = to_network_input(resize_batch(images, PIXELS_SIDE), mean, std)
        return {layer: _normalized(self._flat(output, layer)) for layer, output in outputs.items()}

    def _flat(self, output: Tensor, layer: str) -> Tensor:
        """Returns the output of a layer as float32 (N, d)."""
        output = output.float()
        if output.ndim == 4 and layer != PIXELS and self.grid is not None:
            return self.grid(output)
        return output.flatten(1)

    def load(self, images: Images, indices: Sequence[int], workers: int) -> Generator[list[Inputs], None, None]:
        """Yields the inputs of images in groups of equal size, as `load_groups` does, each for one call."""
        return load_groups(
            images,
            partial(_prepared, view=self.view, scale=self.scale),
            indices,
            pixels=4 * self.scale**2 // 3 if self.view == "full" else self.scale**2,  # of a 4:3 image
            per_pass=self.pixels,
            workers=workers,
        )

    def lengths(self) -> dict[str, int]:
        """Returns the number of values of a feature by layer, from a forward pass of a black image."""
        black = Inputs(0, [torch.zeros(self.scale, self.scale, 3, dtype=torch.uint8)])
        return {layer: rows.shape[1] for layer, rows in self([black]).items()}


def _prepared(image: Tensor, view: str, scale: int) -> list[Tensor]:
    """Makes the input of a decoded image in loader processes: uint8 (3, h, w) -> uint8 (h', w', 3)."""
    return [VIEWS[view](image, scale).permute(1, 2, 0).contiguous()]


def check_view(network: SPPNet, layers: Sequence[str], view: str, scale: int) -> None:
    """Raises ValueError for layers, a view or a scale that the network cannot take."""
    check_names("view", [view], VIEWS)
    if not layers:
        raise ValueError("layers=[]: must name at least one layer, as in layers=[pool5,fc7]")
    network.check_layers("layers", layers, [PIXELS])
    # Words instead of KEY=VALUE: the argument is `scale`, and the key of the command `scales`.
    smallest = network.backbone.smallest_input
    if not smallest <= scale <= LARGEST_SCALE:
        raise ValueError(f"a scale of {scale}: must be from {smallest} to {LARGEST_SCALE} pixels for this network")
    side = network.input_side
    if side is not None and (view == "full" or scale != side):
        raise ValueError(
            f"view={view} at a scale of {scale}: the network has no pyramid and takes {side} x {side} images only; use "
            f"view=crop or view=warp at a scale of {side}"
        )


def _normalized(rows: Tensor) -> np.ndarray:
    """Divides float32 (N, d) by the l2 norm of each row, and returns float16; rows of zeros stay zero."""
    # First by the largest value: squares of values above 1e19 or below 1e-22 leave the range of float32.
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    rows = rows / largest.clamp(min=torch.finfo(torch.float32).tiny)
    return F.normalize(rows, dim=1).half().cpu().numpy()


class _Extraction(NamedTuple):
    """The arguments of `_extract_share`: all that a process needs to extract features of its share of the images."""

    network: SPPNet
    build_extractor: Callable[[SPPNet], FeatureExtractor]
    images: Images
    left: np.ndarray  # int (k,), the images to extract
    folder: Path  # of the folders of the layers
    hardware: Hardware
    title: str


def _extract_share(rank: int, work: _Extraction) -> None:
    """Extracts the features of this process's share of the images, and marks them as done along the way."""
    hardware = work.hardware
    extractor = work.build_extractor(work.network.to(prepare_device(rank, hardware)))
    share = work.left[rank :: hardware.processes].tolist()
    files = {layer: open_features(work.folder / layer, writable=True) for layer in extractor.all_layers}
    written: list[int] = []
    marked_at = time.perf_counter()

    def mark() -> None:
        for features in files.values():
            features.mark_done(written)
        written.clear()

    with contextlib.ExitStack() as stack:
        # Runs after an unreadable image and after Ctrl-C as well.
        stack.callback(mark)
        # Around the whole loop, autocast converts each weight once instead of once per batch.
        stack.enter_context(torch.autocast(extractor.device.type, extractor.autocast, enabled=bool(extractor.autocast)))
        # The shares of all processes differ by at most one image, so one of them shows the progress of all.
        progress = stack.enter_context(Progress(work.title, len(share))) if rank == 0 else None
        stack.enter_context(explained_loader_failures("hardware.workers"))
        groups = extractor.load(work.images, share, hardware.loaders)
        stack.enter_context(contextlib.closing(groups))

        for group in groups:
            indices = [inputs.image_index for inputs in group]
            for layer, rows in extractor(group).items():
                _check_finite(rows, layer, [work.images.name(i) for i in indices])
                files[layer].write(indices, rows)
            written += indices
            if progress is not None:
                progress.add(len(indices))
            if time.perf_counter() - marked_at > SECONDS_BETWEEN_MARKS:
                mark()
                marked_at = time.perf_counter()


def _check_finite(rows: np.ndarray, layer: str, names: list[str]) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        name = printable(names[int(finite.argmin())])
        raise ValueError(f"{name}: {layer} is not finite for this image; the network is damaged")
