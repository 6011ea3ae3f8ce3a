"""Steps in parts: their gradients are added up, for batches that do not fit into the memory of a device."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sppnet.network import SPPNet


def loss_in_parts(loss_of: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor, parts: int) -> Tensor:
    """Returns the mean loss of a step, and adds up the gradients of all its parts but the last.

    The last part is in the graph of the result. So the caller computes its gradients, and several processes exchange
    the sums.

    Args:
        loss_of: computes the mean loss over some images and labels.
        images: (N, ...).
        labels: (N, ...).
        parts: equal ones, but for a last one that is smaller where they cannot be.
    """
    *others, (last_images, last_labels) = zip(images.chunk(parts), labels.chunk(parts), strict=True)
    loss_of_others = torch.zeros((), device=images.device)
    for some_images, some_labels in others:
        loss = len(some_images) / len(images) * loss_of(some_images, some_labels)
        with torch.autocast(images.device.type, enabled=False):  # backward is not meant to run under it
            loss.backward()
        loss_of_others += loss.detach()
    return loss_of_others + len(last_images) / len(images) * loss_of(last_images, last_labels)


def fewest_parts(network: SPPNet, images: int, side: int, precision: Callable[[], AbstractContextManager[None]]) -> int:
    """Returns the smallest power of two that divides `images` and whose parts of a step fit into memory.

    Every attempt computes the gradients of one part of zeros, beside the memory that a step needs besides: all images,
    two values of the optimizer and one of an average or of several processes per weight. Changes no weight, buffer or
    random state. The network is not compiled for it, which takes more memory than a step does.

    Args:
        network: on the device, in training mode.
        images: of a step of this process.
        side: of the largest images in pixels.
        precision: makes the context of training, such as autocast.

    Raises torch.OutOfMemoryError if not even the smallest part fits.
    """
    device = next(network.parameters()).device
    buffers = [buffer.clone() for buffer in network.buffers()]
    parts = 1
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while not _fits(network, images, parts, side, precision):
            parts *= 2
            if images % parts:
                raise torch.OutOfMemoryError(
                    f"trainer.accumulate=auto: {2 * images // parts} of the {images} images of a step do not fit into "
                    "memory, and they cannot be split further; lower recipe.batch_size or the sizes"
                )
    with torch.no_grad():
        for buffer, saved in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(saved)
    return parts


def _fits(
    network: SPPNet, images: int, parts: int, side: int, precision: Callable[[], AbstractContextManager[None]]
) -> bool:
    try:
        _try_part(network, images, parts, side, precision)
    except torch.OutOfMemoryError:
        return False
    finally:
        network.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def _try_part(
    network: SPPNet, images: int, parts: int, side: int, precision: Callable[[], AbstractContextManager[None]]
) -> None:
    device = next(network.parameters()).device
    step = torch.zeros(images, 3, side, side, device=device).to(memory_format=torch.channels_last)
    besides = [torch.empty_like(p) for p in network.parameters() for _ in range(3)]
    with precision():
        loss = network.forward(step[: images // parts]).float().sum()
    loss.backward()
    del besides
