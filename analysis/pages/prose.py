"""HTML of a notebook's cell as HTML that a page may hold: known tags without attributes, all else as its text."""

from html.parser import HTMLParser

from analysis.showing.words import markup

# a page's own heading is its h1
KEPT = ("p", "ul", "ol", "li", "strong", "em", "code", "pre", "h2", "h3", "h4", "blockquote", "hr", "br",
        "table", "thead", "tbody", "tr", "th", "td")  # fmt: skip
EMPTY = ("hr", "br")
SILENT = ("script", "style", "template", "title")  # what stands in them is no text
FRAME = '<div class="scroll" tabindex="0" role="region" aria-label="table">'  # a wide table scrolls in it, by keys too


class _Kept(HTMLParser):
    """out: what is kept so far. Every tag that is opened here is closed here, whatever the text does."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.open: list[tuple[str, str]] = []  # tag of the text, tag of the page ("" where there is none)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        shown = "p" if ("class", "paragraph") in attrs else {"h1": "h2"}.get(tag, tag)  # marimo's paragraph is a span
        shown = shown if shown in KEPT else ""
        self.out += [FRAME] if shown == "table" else []
        self.out += [f"<{shown}>"] if shown else []
        if tag not in EMPTY:
            self.open.append((tag, shown))

    def handle_endtag(self, tag: str) -> None:
        if tag not in (name for name, _ in self.open):
            return
        while self.open:
            name, shown = self.open.pop()
            self.out += [f"</{shown}>"] if shown else []
            self.out += ["</div>"] if shown == "table" else []
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if not any(name in SILENT for name, _ in self.open):
            self.out.append("\n".join(map(markup, data.split("\n"))))


def safe(html: str) -> str:
    """The same text in known tags that carry nothing; headings of the first order become those of a section."""
    parser = _Kept()
    parser.feed(html)
    parser.close()
    for name, _ in reversed(parser.open[:]):
        parser.handle_endtag(name)
    return "".join(parser.out).strip()
