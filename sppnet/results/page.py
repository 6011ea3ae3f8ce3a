"""A page of headings, text, tables and plots, written as Markdown and as one self-contained HTML file."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sppnet.runtime.files import atomic_file

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff }
body { max-width: 72em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .3em .8em; border-bottom: 1px solid #dde2ea; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #8a94a6 }
td:first-child { white-space: nowrap }
th.number { text-align: right }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.pictures { display: flex; flex-wrap: wrap; gap: .8em } .pictures figure { margin: 0; max-width: var(--width) }
.pictures figcaption { font-size: .8em; overflow-wrap: anywhere } .pictures img { max-width: 100% }
code { background: #f0f2f6; padding: .1em .3em; border-radius: 3px } svg { max-width: 100%; height: auto }
"""


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

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table. Words between backticks are set as code."""
        self.blocks.append(("table", (list(headers), [list(row) for row in rows])))

    def figure(self, figure: Any, description: str) -> None:
        """Adds a plot.

        Args:
            figure: a `matplotlib.figure.Figure`.
            description: what it shows, in words, for readers who cannot see it.
        """
        file = io.StringIO()
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        svg = file.getvalue()
        self.blocks.append(("figure", (svg[svg.index("<svg") :], description)))

    def pictures(self, pictures: Sequence[tuple[bytes, str]], width: int = 360) -> None:
        """Adds pictures side by side, which are in the HTML file only. Each is a JPEG file and a line of text.

        Args:
            pictures: the files and texts.
            width: of the widest one in pixels, at which its text is broken.
        """
        self.blocks.append(("pictures", (list(pictures), width)))

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
                parts.append(markdown_table(*content))
            elif kind == "pictures":
                parts.append(f"({len(content[0])} picture{'s' * (len(content[0]) != 1)}, in the HTML file)")
            elif figures:
                parts.append(f"![{content[1]}]({next(names)})")
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """Returns the page as one HTML file, plots included."""
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for kind, content in self.blocks:
            if kind == "heading":
                parts.append(f"<h2>{html.escape(content)}</h2>")
            elif kind == "text":
                parts.append(f"<p>{_inline(content)}</p>")
            elif kind == "table":
                parts.append(_html_table(*content))
            elif kind == "pictures":
                pictures, width = content
                shown = "".join(map(_html_picture, pictures))
                parts.append(f'<div class="pictures" style="--width: {width}px">{shown}</div>')
            else:
                svg, description = content
                parts.append(f'<figure role="img" aria-label="{html.escape(description)}">{svg}</figure>')
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{_STYLE}</style>'
        return f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"

    def write(self, folder: Path, name: str) -> list[Path]:
        """Writes NAME.md, NAME.html and a NAME-i.svg per plot into `folder`, each atomically; returns their paths."""
        svgs = [content[0] for kind, content in self.blocks if kind == "figure"]
        plots = {f"{name}-{i}.svg": svg for i, svg in enumerate(svgs, start=1)}
        files = {f"{name}.md": self.markdown(list(plots)), f"{name}.html": self.html(), **plots}

        for file, content in files.items():
            with atomic_file(folder / file) as stream:
                stream.write(content.encode())
        return [folder / file for file in files]


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with aligned columns, which is readable as plain text."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (headers, *rows)]
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


def _html_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numbers = _number_columns(headers, rows)
    head = "".join(
        f"<th{' class=number' if number else ''}>{html.escape(header)}</th>"
        for header, number in zip(headers, numbers, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="number">{html.escape(cell)}</td>' if number else f"<td>{_inline(cell)}</td>"
            for cell, number in zip(row, numbers, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _html_picture(picture: tuple[bytes, str]) -> str:
    data, text = base64.b64encode(picture[0]).decode(), html.escape(picture[1])
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>\n'


def _number_columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Returns which columns hold only numbers and blanks. ± 0.3, (1.2 to 3.4) and < 0.001 count as numbers."""
    columns = list(zip(*rows, strict=True)) or [()] * len(headers)
    number = re.compile(r"[-+±<0-9.,() ]|to")
    return [any(column) and not any(number.sub("", cell) for cell in column) for column in columns]


def _inline(text: str) -> str:
    """Returns the text escaped for HTML, with words between backticks as code."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
