"""HTML of a cell on a page: its text in known tags, and nothing else."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from analysis.pages.prose import KEPT, safe

PIECES = st.sampled_from(
    ["<p>", "</p>", "<b>", "</b>", "<pre>", "</pre>", "<table>", "</table>", "<td>", "a < b", "&lt;script&gt;", "<br>",
     "<script>x</script>", "<img src=x onerror=y>", "<span class='paragraph'>", "</span>", "</ul>", '"', "<h1>", "\n"]
)  # fmt: skip


class Seen(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in KEPT or (tag, dict(attrs).get("class")) == ("div", "scroll")
        assert tag == "div" or not attrs
        self.open += [tag] if tag not in ("br", "hr") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@given(st.lists(PIECES, max_size=12).map("".join))
def test_whatever_it_is_given_known_tags_come_out_each_closed(html: str) -> None:
    assert not Seen(safe(html)).open


def test_by_hand() -> None:
    assert (
        safe('<h1 id="a">A</h1><p onclick="x">b &lt; <a href="javascript:c">c</a></p>') == "<h2>A</h2><p>b &lt; c</p>"
    )
    assert safe("<p>a<script>alert(1)</script>b") == "<p>ab</p>"
    assert safe('<span class="paragraph">a<br>b</span>') == "<p>a<br>b</p>"
    assert safe("<pre>a  &amp; b\n c</pre>") == "<pre>a  &amp; b\n c</pre>"
