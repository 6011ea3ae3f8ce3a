"""A page of headings, text, tables and plots, written as Markdown and as one self-contained HTML file."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import indent
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from sppnet.runtime.files import atomic_file


class Link(NamedTuple):
    """A cell of a table that leads to another page."""

    text: str
    address: str  # relative to the page, percent-encoded


Cell = str | Link


@dataclass
class Page:
    """A page, built from top to bottom. All text is plain and gets escaped: file and class names may hold markup."""

    title: str
    blocks: list[tuple[str, Any]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Adds a heading."""
        self.blocks.append(("heading", text))

    def text(self, text: str) -> None:
        """Adds a paragraph. Words between backticks are set as code."""
        self.blocks.append(("text", text))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Cell]], folded: str = "") -> None:
        """Adds a table. Words between backticks are set as code.

        Args:
            headers: of the columns.
            rows: their cells.
            folded: in HTML, the line to click on that shows the table; "" for one that is always shown.
        """
        table = {"headers": headers, "rows": rows, "numbers": _number_columns(headers, rows), "folded": folded}
        self.blocks.append(("table", table))

    def code(self, text: str, folded: str) -> None:
        """Adds lines to be shown as they are. `folded`: the line to click on that shows them."""
        self.blocks.append(("code", {"text": text, "folded": folded}))

    def links(self, links: Sequence[tuple[str, str]]) -> None:
        """Adds a row of links: texts, and addresses relative to the page, such as "runs.html"."""
        self.blocks.append(("links", list(links)))

    def figure(self, figure: Any, description: str, caption: str = "") -> None:
        """Adds a plot.

        Args:
            figure: a `matplotlib.figure.Figure`.
            description: what it shows, in words, for readers who cannot see it.
            caption: a line below it: of how many images and by which protocol.
        """
        file = io.StringIO()
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        svg = file.getvalue()
        content = {"svg": svg[svg.index("<svg") :], "description": description, "caption": caption}
        self.blocks.append(("figure", content))

    def pictures(self, pictures: Sequence[tuple[bytes, str]], width: int = 360) -> None:
        """Adds pictures side by side, which are in the HTML file only. Each is a JPEG or PNG file and a line of text.

        Args:
            pictures: the files and texts.
            width: of the widest one in pixels, at which its text is broken.
        """
        shown = [(_data_address(file), text) for file, text in pictures]
        self.blocks.append(("pictures", {"pictures": shown, "width": width}))

    def grid(self, pictures: Sequence[tuple[Sequence[bytes], str]], columns: int = 5) -> None:
        """Adds pictures in columns of equal width, three on a phone. They are in the HTML file only.

        Args:
            pictures: one or more JPEG or PNG files each, one above the other, and text, which may have several lines.
                Those that are not square are shown within a square.
            columns: how many.
        """
        shown = [([_data_address(file) for file in files], text) for files, text in pictures]
        self.blocks.append(("grid", {"pictures": shown, "columns": columns}))

    def markdown(self, figures: Sequence[str] = ()) -> str:
        """Returns the page as Markdown.

        Args:
            figures: file names of the plots, in order; without any, plots are left out.
        """
        parts, names = [f"# {self.title}"], iter(figures)
        for kind, content in self.blocks:
            if kind == "heading":
                parts.append(f"## {content}")
            elif kind == "text":
                parts.append(content)
            elif kind == "table":
                parts.append(markdown_table(content["headers"], content["rows"]))
            elif kind == "code":
                parts.append(f"{content['folded']}:\n\n{indent(content['text'].rstrip(), '    ')}")
            elif kind == "links":
                parts.append(", ".join(f"[{text}]({address})" for text, address in content))
            elif kind in ("pictures", "grid"):
                count = len(content["pictures"])
                parts.append(f"({count} picture{'s' * (count != 1)}, in the HTML file)")
            elif figures:
                parts.append(f"![{content['description']}]({next(names)})")
                parts += [content["caption"]] if content["caption"] else []
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """Returns the page as one HTML file, plots and pictures included."""
        return _template().render(page=self)

    def write_html(self, file: Path) -> None:
        """Writes the page as one HTML file, atomically."""
        with atomic_file(file) as stream:
            stream.write(_encoded(self.html()))

    def write(self, folder: Path, name: str) -> list[Path]:
        """Writes NAME.md, NAME.html and a NAME-i.svg per plot into `folder`, each atomically; returns their paths."""
        svgs = [content["svg"] for kind, content in self.blocks if kind == "figure"]
        plots = {f"{name}-{i}.svg": svg for i, svg in enumerate(svgs, start=1)}
        files = {f"{name}.md": self.markdown(list(plots)), f"{name}.html": self.html(), **plots}

        for file, content in files.items():
            with atomic_file(folder / file) as stream:
                stream.write(_encoded(content))
        return [folder / file for file in files]


def _encoded(text: str) -> bytes:
    r"""Encodes text as UTF-8. Bytes of file names that are not UTF-8 become \udc followed by two digits."""
    return text.encode(errors="backslashreplace")


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Returns a Markdown table with aligned columns, which is readable as plain text."""
    cells = [[_markdown_cell(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = _number_columns(headers, rows)

    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ]
        lines.append(f"| {' | '.join(padded)} |")
    rules = ["-" * (w + 1) + (":" if number else "-") for w, number in zip(widths, numbers, strict=True)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def _markdown_cell(cell: Cell) -> str:
    text = cell if isinstance(cell, str) else f"[{cell.text}]({cell.address})"
    return text.replace("|", "\\|").replace("\n", " ")


def _number_columns(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Returns which columns hold only numbers and blanks. ± 0.3, (1.2 to 3.4) and < 0.001 count as numbers."""
    columns = list(zip(*rows, strict=True)) or [()] * len(headers)
    number = re.compile(r"[-+±<0-9.,() ]|to")
    texts = [[cell if isinstance(cell, str) else cell.text for cell in column] for column in columns]
    return [any(column) and not any(number.sub("", text) for text in column) for column in texts]


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"inline": _inline, "cell": _cell}
    return environment.get_template("page.html.jinja")


def _data_address(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _cell(cell: Cell) -> Markup:
    return _inline(cell) if isinstance(cell, str) else Markup('<a href="{}">{}</a>').format(cell.address, cell.text)


def _inline(text: str) -> Markup:
    """Returns the text escaped for HTML, with words between backticks as code."""
    pieces = (escape(piece) for piece in text.split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if i % 2 else piece for i, piece in enumerate(pieces)
    )
