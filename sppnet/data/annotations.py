"""Annotations in the XML of PASCAL VOC: the objects of one image, read and written."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from sppnet.runtime.names import first_line, printable

_MAX_XML_BYTES = 2_000_000  # five thousand objects


class AnnotatedObject(NamedTuple):
    """An object in an image."""

    name: str  # of its class
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels from 0; x1 and y1 are just outside
    difficult: bool  # ignored by the protocols of VOC
    truncated: bool


class Annotation(NamedTuple):
    """What an annotation file says of its image. Width and height are None if it does not say them."""

    width: int | None
    height: int | None
    objects: tuple[AnnotatedObject, ...]


def read_annotation(source: Path | bytes, name: str) -> Annotation:
    """Reads an annotation in the XML of PASCAL VOC.

    VOC's boxes count pixels from 1 and include the last one; these count from 0 and are half-open, so that
    (1, 1, 500, 375) becomes (0, 0, 500, 375). Some files have fractions of pixels, which stay. Boxes that reach beyond
    the image stay, too. A `difficult` or `truncated` that is missing is False, and a size of 0 is one that is missing.

    Args:
        source: the file or its content.
        name: what errors call it.

    Raises FileNotFoundError if there is no such file, and ValueError, with `name` and the number of the object, for
    anything else: other XML, empty boxes, a DOCTYPE (nine lines of entities can make a billion), more than 2 MB.
    """
    try:
        root = _parsed(source if isinstance(source, bytes) else _content(source))
        objects = tuple(_read_object(i, element) for i, element in enumerate(root.findall("object"), 1))
        return Annotation(_length(root, "width"), _length(root, "height"), objects)
    except FileNotFoundError as error:
        raise FileNotFoundError(printable(f"{name}: there is no such file")) from error
    except (ValueError, ElementTree.ParseError) as error:
        raise ValueError(printable(f"{name}: {first_line(error)}")) from error


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_XML_BYTES + 1)


def _parsed(content: bytes) -> ElementTree.Element:
    """Returns the element <annotation> of a document without entities of its own."""
    if len(content) > _MAX_XML_BYTES:
        raise ValueError(f"more than {_MAX_XML_BYTES:,} bytes")
    # Given as text, whatever encoding the file declares, so that no encoding hides a DOCTYPE from the search.
    text = content.decode("utf-8")
    if "<!DOCTYPE" in text:
        raise ValueError("found a DOCTYPE, which may define entities, expected XML without one")
    root = ElementTree.fromstring(text)
    if root.tag != "annotation":
        raise ValueError(f"found <{root.tag}>, expected <annotation>")
    return root


def _read_object(number: int, element: ElementTree.Element) -> AnnotatedObject:
    name = (element.findtext("name") or "").strip()
    try:
        if not name:
            raise ValueError("has no <name>")
        x0, y0, x1, y1 = (_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        if x1 <= x0 - 1 or y1 <= y0 - 1:
            raise ValueError(f"has the empty box xmin {x0:g}, ymin {y0:g}, xmax {x1:g}, ymax {y1:g}")
        return AnnotatedObject(name, (x0 - 1, y0 - 1, x1, y1), _flag(element, "difficult"), _flag(element, "truncated"))
    except ValueError as error:
        raise ValueError(f"object {number}{f' ({name})' if name else ''} {error}") from error


def _number(element: ElementTree.Element, tag: str) -> float:
    text = element.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"has {text!r} as <{tag}>, expected a number")
    return value


def _flag(element: ElementTree.Element, tag: str) -> bool:
    text = (element.findtext(tag) or "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"has {text!r} as <{tag}>, expected 0 or 1")
    return text == "1"


def _length(root: ElementTree.Element, tag: str) -> int | None:
    """The width or height of the image; None if it is missing or 0."""
    if not (root.findtext(f"size/{tag}") or "").strip():
        return None
    length = _number(root, f"size/{tag}")
    if length < 0:
        raise ValueError(f"has the {tag} {length:g}")
    return int(length) or None


def annotation_xml(filename: str, annotation: Annotation) -> bytes:
    """Returns the XML that `read_annotation` reads back. Boxes of whole pixels come back exactly.

    Args:
        filename: of the image.
        annotation: of the image, with its size.
    """
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = filename
    size = ElementTree.SubElement(root, "size")
    for tag, length in (("width", annotation.width), ("height", annotation.height), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(length or 0)

    for annotated in annotation.objects:
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = annotated.name
        ElementTree.SubElement(element, "truncated").text = str(int(annotated.truncated))
        ElementTree.SubElement(element, "difficult").text = str(int(annotated.difficult))
        x0, y0, x1, y1 = annotated.box
        box = ElementTree.SubElement(element, "bndbox")
        for tag, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            ElementTree.SubElement(box, tag).text = f"{value:.17g}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8")
