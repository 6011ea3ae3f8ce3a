"""Annotations of PASCAL VOC: what is read, written, and refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.annotations import AnnotatedObject, Annotation, read_annotation
from sppnet.data.annotations import annotation_xml as annotation_xml_of


def box_xml(xmin=48, ymin=240, xmax=195, ymax=371):
    return f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"


def object_xml(name="dog", rest="", box=None):
    return f"<object><name>{name}</name>{rest}{box_xml() if box is None else box}</object>"


def annotation_xml(*objects, size="<size><width>353</width><height>500</height><depth>3</depth></size>"):
    return f"<annotation><folder>VOC2007</folder>{size}{''.join(objects)}</annotation>".encode()


DEVKIT_XML = b"""<annotation>
	<folder>VOC2007</folder>
	<filename>000001.jpg</filename>
	<size>
		<width>353</width>
		<height>500</height>
		<depth>3</depth>
	</size>
	<object>
		<name>dog</name>
		<pose>Left</pose>
		<truncated>1</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>48</xmin>
			<ymin>240</ymin>
			<xmax>195</xmax>
			<ymax>371</ymax>
		</bndbox>
	</object>
	<object>
		<name>person</name>
		<truncated>0</truncated>
		<difficult>1</difficult>
		<bndbox><xmax>353</xmax><xmin>1</xmin><ymax>500</ymax><ymin>1</ymin></bndbox>
		<part><name>head</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>7</xmax><ymax>8</ymax></bndbox></part>
	</object>
</annotation>
"""


def test_an_annotation_of_the_devkit_counts_from_zero_with_half_open_boxes(tmp_path):
    file = tmp_path / "000001.xml"
    file.write_bytes(DEVKIT_XML)
    annotation = read_annotation(file, "000001")
    assert annotation == read_annotation(DEVKIT_XML, "000001")
    assert (annotation.width, annotation.height) == (353, 500)
    dog, person = annotation.objects
    assert dog == ("dog", (47, 239, 195, 371), False, True)
    assert person == ("person", (0, 0, 353, 500), True, False)


@given(st.lists(st.integers(1, 500), min_size=4, max_size=4))
def test_a_half_open_box_holds_exactly_the_pixels_of_vocs_box(corners):
    xmin, ymin, xmax, ymax = corners
    content = annotation_xml(object_xml(box=box_xml(xmin, ymin, xmax, ymax)))
    if xmax < xmin or ymax < ymin:
        with pytest.raises(ValueError, match=rf"^x: object 1 \(dog\) has the empty box xmin {xmin}, ymin {ymin}, "):
            read_annotation(content, "x")
        return
    x0, y0, x1, y1 = read_annotation(content, "x").objects[0].box
    assert list(range(int(x0), int(x1))) == [pixel - 1 for pixel in range(xmin, xmax + 1)]
    assert list(range(int(y0), int(y1))) == [pixel - 1 for pixel in range(ymin, ymax + 1)]


def test_what_real_files_lack_or_have_otherwise():
    assert read_annotation(b"<annotation/>", "x") == Annotation(None, None, ())
    zero = "<size><width>0</width><height> 0 </height></size>"
    assert read_annotation(annotation_xml(size=zero), "x") == Annotation(None, None, ())
    assert read_annotation(b"\xef\xbb\xbf<?xml version='1.0'?>" + annotation_xml(), "x").height == 500
    (found,) = read_annotation(annotation_xml(object_xml(" dog\n", box=box_xml("45.70", -3, 700, 371))), "x").objects
    assert found == ("dog", (44.70, -4, 700, 371), False, False)
    (found,) = read_annotation(annotation_xml(object_xml(rest="<difficult/><truncated> 1 </truncated>")), "x").objects
    assert found[2:] == (False, True)


BOMB = "".join(f'<!ENTITY a{i} "{10 * f"&a{i - 1};"}">' for i in range(1, 10))
BOMB = f'<!DOCTYPE annotation [<!ENTITY a0 "dog">{BOMB}]><annotation>&a9;</annotation>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOMB.encode(), "found a DOCTYPE"),
        (b'<?xml version="1.0" encoding="UTF-16"?>' + BOMB.encode(), "found a DOCTYPE"),
        (BOMB.encode("utf-16"), "can't decode byte"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "found a DOCTYPE"),
        (annotation_xml(" " * 2_000_000), "more than 2,000,000 bytes"),
        (b"", "no element found"),
        (b"<annotation>", "no element found"),
        (b"<annotation>&dog;</annotation>", "undefined entity"),
        (b"<html/>", "found <html>, expected <annotation>"),
        (annotation_xml(object_xml(), object_xml(box="")), r"object 2 \(dog\) has None as <bndbox/xmin>"),
        (
            annotation_xml(
                object_xml(""),
            ),
            "object 1 has no <name>",
        ),
        (annotation_xml(object_xml(box=box_xml(xmin="left"))), r"\(dog\) has 'left' as <bndbox/xmin>, expected a num"),
        (annotation_xml(object_xml(box=box_xml(xmax="inf"))), r"has 'inf' as <bndbox/xmax>"),
        (annotation_xml(object_xml(box=box_xml(ymax="nan"))), r"has 'nan' as <bndbox/ymax>"),
        (annotation_xml(object_xml(box=box_xml(ymin=9, ymax=8))), r"has the empty box .*ymin 9, .*ymax 8$"),
        (annotation_xml(object_xml(rest="<difficult>yes</difficult>")), "has 'yes' as <difficult>, expected 0 or 1"),
        (annotation_xml(object_xml("a\x1b[2J")), "not well-formed"),
        (annotation_xml(size="<size><width>-5</width></size>"), "has the width -5"),
        (annotation_xml(size="<size><width>wide</width></size>"), "has 'wide' as <size/width>"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_other_files_are_refused_by_name_and_object(tmp_path, content, words):
    file = tmp_path / "x.xml"
    file.write_bytes(content)
    for source in (content, file):
        with pytest.raises(ValueError, match=rf"^x\.xml: .*{words}") as error:
            read_annotation(source, "x.xml")
        assert str(error.value).isprintable()


def test_a_deep_or_missing_file_ends_in_an_error_or_an_annotation(tmp_path):
    deep = 100_000 * b"<a>" + 100_000 * b"</a>"
    assert read_annotation(b"<annotation>" + deep + b"</annotation>", "x").objects == ()
    with pytest.raises(FileNotFoundError, match=r"^x\.xml: there is no such file$"):
        read_annotation(tmp_path / "x.xml", "x.xml")


def test_what_is_written_is_read_back():
    objects = (
        AnnotatedObject("dog & <cat>", (0, 0, 353, 500), difficult=True, truncated=False),
        AnnotatedObject("ü", (7, 11, 8, 12), difficult=False, truncated=True),
        AnnotatedObject("dog", (0.5, 2.25, 3, 4), difficult=False, truncated=False),
    )
    annotation = Annotation(353, 500, objects)
    assert read_annotation(annotation_xml_of("x.jpg", annotation), "x") == annotation
    assert read_annotation(annotation_xml_of("x.jpg", Annotation(None, None, ())), "x") == Annotation(None, None, ())
