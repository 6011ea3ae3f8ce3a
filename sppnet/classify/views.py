"""Test protocols: the crops, windows and whole images of an image that are scored, and at which scales.

Data and integer geometry only; `sppnet.classify.scorer` scores the views.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sppnet.geometry import CROP_POSITIONS, CROP_SIDE, LARGEST_SCALE, POSITIONS, Window, window_at

if TYPE_CHECKING:  # the network imports torch, which takes seconds; commands check the views without it
    from sppnet.network import SPPNet


@dataclass(frozen=True, kw_only=True)
class ViewProtocol:
    """The views whose softmax scores are averaged.

    Args:
        scales: shorter sides in pixels at which windows are taken.
        view_size: side of the windows in pixels.
        positions: names of POSITIONS.
        full_scales: shorter sides at which the whole image is a view.
        mirrored: whether the mirror image of every view, window or whole image, is a view as well.
        maps: True pools windows from the feature maps of the whole image, computed once per scale (§3.1.5); False sends
            crops through the network.
        aligned: True sends whole images through `network.aligned()`, whose paddings are floor(kernel / 2) (Appendix A);
            False through the network with the paddings of training, crops always use the paddings of training.

    Sections and appendices are those of arXiv:1406.4729v4.

    Raises ValueError for a protocol without views, an unknown or repeated entry, windows larger than the image, and
    scales above LARGEST_SCALE.
    """

    scales: list[int] = field(default_factory=list)
    view_size: int = CROP_SIDE
    positions: list[str] = field(default_factory=list)
    full_scales: list[int] = field(default_factory=list)
    mirrored: bool = False
    maps: bool = False
    aligned: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.positions if name not in POSITIONS]
        if unknown:
            raise ValueError(f"positions={self.positions}: {unknown[0]} must be one of {', '.join(POSITIONS)}")
        for name in ("scales", "positions", "full_scales"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}={values}: must not repeat an entry")

        if bool(self.scales) != bool(self.positions):
            raise ValueError(f"scales={self.scales}, positions={self.positions}: give both, or neither")
        if not self.scales and not self.full_scales:
            raise ValueError("scales=[], full_scales=[]: a protocol needs at least one view")

        if min([self.view_size, *self.full_scales]) < 1:
            raise ValueError(f"view_size={self.view_size}, full_scales={self.full_scales}: must be at least 1")
        if self.scales and min(self.scales) < self.view_size:
            raise ValueError(f"scales={self.scales}: must be at least view_size={self.view_size}")
        for name in ("scales", "full_scales"):
            if max(getattr(self, name), default=0) > LARGEST_SCALE:
                raise ValueError(f"{name}={getattr(self, name)}: must be at most {LARGEST_SCALE} pixels")

    def at(self, scale: int) -> "ViewProtocol | None":
        """Returns the same views at another scale; None if their windows are larger than that."""
        if self.scales and scale < self.view_size:
            return None
        scales, full_scales = ([scale] if given else [] for given in (self.scales, self.full_scales))
        return dataclasses.replace(self, scales=scales, full_scales=full_scales)

    def text(self) -> str:
        """Describes the protocol in a few words."""
        parts = []
        if self.scales:
            names = {CROP_POSITIONS: "centre and corners", tuple(POSITIONS): "nine positions"}
            positions = names.get(tuple(self.positions), ", ".join(self.positions)).replace("_", " ")
            kind = "windows pooled from maps" if self.maps else "crops"
            parts.append(f"{self.view_size} {kind} ({positions}) at shorter side {_joined(self.scales)}")
        if self.full_scales:
            parts.append(f"whole image at shorter side {_joined(self.full_scales)}")

        uses_maps = bool(self.full_scales) or self.maps
        return (
            " + ".join(parts)
            + (", each also mirrored" if self.mirrored else "")
            + (", aligned paddings" if uses_maps and self.aligned else "")
        )

    def unsuited_to(self, network: "SPPNet") -> str | None:
        """Names the views that a network without a pyramid cannot be tested on; None if it can be tested on all."""
        if network.levels is not None:
            return None
        if self.full_scales:
            return "whole images"
        if self.maps:
            return "windows pooled from feature maps"
        return None if self.view_size == network.input_side else f"crops of {self.view_size}"


def in_pixels(section: dict[str, Any], crop_side: int) -> dict[str, Any]:
    """Converts a section of configs/views to pixels, for a network trained on crops of `crop_side` pixels.

    Scales such as "256/224" become that multiple of `crop_side`, rounded half up; numbers are pixels and stay. Without
    a view_size, or with null, windows are as large as the crops. Anything else stays for ViewProtocol to refuse.
    """
    scaled = {
        key: [_multiple(value, crop_side) for value in values]
        for key in ("scales", "full_scales")
        if isinstance(values := section.get(key), list)
    }
    size = section.get("view_size")
    return {**section, **scaled, "view_size": crop_side if size is None else size}


def _multiple(value: Any, crop_side: int) -> Any:
    if not isinstance(value, str) or not (ratio := re.fullmatch(r"([0-9]{1,5})/([1-9][0-9]{0,4})", value)):
        return value
    numerator, denominator = int(ratio[1]), int(ratio[2])
    return (2 * crop_side * numerator + denominator) // (2 * denominator)


def _joined(sides: list[int]) -> str:
    return "/".join(map(str, sides))


def windows_at(protocol: ViewProtocol, height: int, width: int) -> list[Window]:
    """Returns the windows of a protocol in a resized image of (height, width) pixels, equal ones once, in order.

    In an image that is as wide as the window, for example, the left and the right window are equal.
    """
    windows = (window_at(name, protocol.view_size, height, width) for name in protocol.positions)
    return list(dict.fromkeys(windows))
