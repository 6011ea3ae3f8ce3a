"""Loading beside torchvision and timm, and beside what the cores could do at most."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sppnet.benchmark.bench import WIDTHS, Bench
from sppnet.benchmark.comparisons import Comparison, Goal, Works, fastest
from sppnet.benchmark.loaders import (
    SIDE,
    Epoch,
    our_loader,
    plain_works,
    random_area,
    random_place,
    timm_epochs,
    torchvision_epochs,
)
from sppnet.benchmark.loading_parts import (
    Photos,
    bound_of,
    files,
    kept,
    loading_of,
    our_loading,
    random_areas,
    raw,
    stored,
)
from sppnet.benchmark.references import plain_loader
from sppnet.benchmark.timing import Work, on_one_thread, with_default_malloc
from sppnet.classify.loading import shorter_side_for
from sppnet.data.images import decode_image, resize_shorter_side
from sppnet.data.sources import LabelledImages
from sppnet.network import IMAGENET_MEAN, IMAGENET_STD


def comparisons(bench: Bench) -> Iterator[Comparison]:
    """Yields loading from files of all widths, then from a store."""
    for width in WIDTHS:
        yield from _of_width(bench, width)
    for name, goal, photos in (
        ("files, 500 wide: ImageFolder and Pillow", Goal(2, None), files(bench, 500, None)),
        ("prepared store: ImageFolder and Pillow", Goal(4, None), stored(bench)),
        ("prepared store of pixels: ImageFolder and Pillow", Goal(4, None), raw(bench)),
        ("decoded images that are kept: ImageFolder and Pillow", Goal(4, None), kept(bench)),
    ):
        yield Comparison(name, goal, partial(beside_image_folder, bench, photos), partial(bound_of, bench, photos))


def _of_width(bench: Bench, width: int) -> Iterator[Comparison]:
    """Yields loading of photos of one width beside timm's loader, torchvision's two, and the limits of the cores."""
    areas, places = files(bench, width, random_areas()), files(bench, width, None)
    loading, root = loading_of(bench), partial(_training_folder, bench, width)

    # Peers are made only when their row is measured, because they look for the files, which takes seconds to draw.
    rows: list[tuple[str, Goal, Photos, Callable[[], Works]]] = [
        (
            "random areas: timm's loader",
            Goal(2, None),
            areas,
            lambda: _beside(bench, areas, timm_epochs(root(), loading)),
        ),
        (
            "random areas: torchvision's RandomResizedCrop",
            Goal(1.5, None),
            areas,
            lambda: _beside(bench, areas, torchvision_epochs(root(), loading, random_area())),
        ),
        (
            "five positions: torchvision's Resize and RandomCrop",
            Goal(2, None),
            places,
            lambda: _beside(bench, places, torchvision_epochs(root(), loading, random_place())),
        ),
        (
            "loader alone: cores x (decode + resize)",
            Goal(0.9, None),
            places,
            lambda: loader_alone(bench, places),
        ),
        (
            "loader and conversion: the same",
            Goal(0.75, None),
            places,
            lambda: loader_and_conversion(bench, places),
        ),
    ]

    for name, goal, photos, works in rows:
        yield Comparison(f"files, {width:,} wide, {name}", goal, works, partial(bound_of, bench, photos))


def _training_folder(bench: Bench, width: int) -> Path:
    return bench.files(width) / "train"


def _beside(bench: Bench, photos: Photos, peers: dict[str, Epoch]) -> Works:
    """Returns ours and the fastest setting of a peer."""
    setting, reference = fastest(plain_works(peers))
    return Works(our_loading(bench, photos), reference, setting)


def beside_image_folder(bench: Bench, photos: Photos) -> Works:
    """Returns ours and what most scripts do with the files of 500 x 375: ImageFolder, Pillow, older transforms."""
    loader = plain_loader(
        _training_folder(bench, 500),
        batch_size=bench.batch_size,
        workers=bench.workers,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )

    def epoch() -> None:
        for images, _ in loader:
            images.to(bench.device, non_blocking=True)

    return Works(our_loading(bench, photos), with_default_malloc(on_one_thread(epoch)))


def loader_alone(bench: Bench, photos: Photos) -> Works:
    """Returns our loader up to uint8 batches, and what it would take if all cores only decoded and resized."""
    data = photos.open()
    loader = our_loader(data, loading_of(bench), photos.augmentation).train_dataloader()

    def epoch() -> None:
        for _ in loader:
            pass

    return Works(on_one_thread(epoch), decoding_and_resizing(bench, data.train))


def loader_and_conversion(bench: Bench, photos: Photos) -> Works:
    """Returns our loading up to the input of the network, and what `loader_alone` is compared with."""
    return Works(our_loading(bench, photos), decoding_and_resizing(bench, photos.open().train))


def decoding_and_resizing(bench: Bench, images: LabelledImages) -> Work:
    """Returns the decoding and resizing that is left to one core if all cores share an epoch evenly."""
    whole_batches = len(images) // bench.batch_size * bench.batch_size or len(images)
    share = max(1, round(whole_batches / max(1, bench.workers)))
    encoded = [(images.read(i), images.name(i)) for i in range(share)]

    def work() -> None:
        for file in encoded:
            resize_shorter_side(decode_image(*file), shorter_side_for(SIDE))

    return on_one_thread(work)
