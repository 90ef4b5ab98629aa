"""The page that `hopmem inspect --report` writes: what is in it, that no name can do anything, and how it behaves."""

import json
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import hopmem
from hopmem.errors import printable
from hopmem.report.advice import MOST, advice
from hopmem.report.cells import number
from hopmem.report.page import PagePicture, PatternRow, page
from hopmem.results import (
    Appended,
    BoundsReport,
    ClosePair,
    Inspection,
    LearningReport,
    Placed,
    SelfTest,
    SeparationReport,
    StoredReport,
)

HOSTILE = [
    "<script>document.title='taken'</script>",
    "</script><script>document.title='taken'</script>",
    "<!--<script>",
    "-->]]><img src=x onerror=document.title='taken'>",
    '"><svg onload="document.title=\'taken\'">',
    "' onmouseover='document.title=1",
    "</title></style></noscript><iframe srcdoc='<script>parent.document.title=1</script>'>",
    "javascript:document.title='taken'",
    "\u202egnp.exe\u200f",
    "two\nlines\r\tand a \x00 and \x1b[31m",
    "lone \ud800 surrogate",
    "\u2028\u2029&lt;&amp;&#60;b&#62;",
    "`backtick` and `another",
    "w" * 4000,
    "",
]
VOID = {"meta", "img", "input", "link", "br", "hr"}
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=4000",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium and no google-chrome on PATH")


class Page(HTMLParser):
    """What a parser sees: elements with their attributes, and the text within each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag][-1] += data

    @property
    def words(self) -> str:
        """All that can be read without a script, on one line."""
        return " ".join(" ".join(self.text["body"]).replace(self.text["script"][0], "").split())


def side(scale: float, names: list[str]) -> SeparationReport:
    quantiles = {q: scale * (i + 1.5) for i, q in enumerate(("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99"))}
    worst = [Placed(names[0], 1.03 * scale, names[1])]
    return SeparationReport(
        1.01 * scale, 5.02 * scale, quantiles, 1 - 1.01 * scale, 700 * scale, 6 * scale, 321.1 * scale, worst
    )


def full(names: list[str] | None = None) -> Inspection:
    """Statistics of a bank about which all is known and nothing is well."""
    names = names or ["a.png", "b.png", "c.png"]
    return Inspection(
        patterns=1234,
        dimension=784,
        shape=[28, 28],
        feature_dimension=345,
        objective="average",
        separation={"raw": side(0.0123, names), "learned": side(0.0345, names)},
        bounds=BoundsReport(0.51, 1.52, 3.53e30, 0.00054, 555.5, 0.0, 0.567, 1.0586, 0.0593),
        closest_pairs=[ClosePair(names[0], names[-1], 0.987654), ClosePair(names[1], names[-1], 0.95432)],
        duplicates=[[names[0], names[1]], names],
        metastable={"0": 3, "1": 71, "2": 17, "more": 19},
        learning=LearningReport(6789, 0.321, 77, 88, {"first": 12.25, "last": 3.125}),
        stored=StoredReport(432, 0.876, [names[0], names[-1]]),
        self_test=SelfTest(["mask:0.5", "gaussian:0.25"], 1110, 0.654),
        appended=Appended(1200, 34, 0.2345, 0.0678, 9),
    )


def empty() -> Inspection:
    """Statistics of a bank of one pattern: nothing can be said."""
    nothing = SeparationReport(None, None, None, None, None, None)
    return Inspection(
        patterns=1,
        dimension=3,
        shape=[3],
        feature_dimension=3,
        objective="raw",
        separation={"raw": nothing, "learned": None},
        bounds=BoundsReport(None, None, None, None, None, 0.0, 0.0),
        closest_pairs=[],
        duplicates=[],
        metastable={},
        learning=None,
    )


def well() -> Inspection:
    """Statistics of a bank that has nothing to mend."""
    return replace(
        full(),
        bounds=replace(full().bounds, guaranteed_radius=0.3),
        closest_pairs=[ClosePair("a.png", "b.png", 0.5)],
        duplicates=[],
        metastable={"1": 64, "more": 0},
        stored=StoredReport(64, 1.0, []),
        self_test=SelfTest([], 64, 1.0),
        appended=None,
    )


def rows(names: list[str]) -> list[PatternRow]:
    return [PatternRow(name, 0.25 + i / 1000, names[i - 1], None) for i, name in enumerate(names)]


def png(side: int = 4) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((side, side), 99, np.uint8)).save(file, "PNG")
    return file.getvalue()


def data(text: str) -> list[list[Any]]:
    """The rows that the page holds for its script."""
    found: list[list[Any]] = json.loads(Page(text).text["script"][0])
    return found


def test_no_element_and_no_attribute_comes_from_a_name() -> None:
    harmless = [f"n{i}" for i in range(len(HOSTILE))]
    pages = [
        Page(page(names[0], full(names), rows(names), [PagePicture(names[1], names[2], png())], omitted=5))
        for names in (harmless, HOSTILE)
    ]
    shapes = [[(tag, sorted(attributes)) for tag, attributes in each.elements] for each in pages]
    assert shapes[0] == shapes[1]
    assert not pages[1].open
    attributes = [[{k: v for k, v in a.items() if k != "alt"} for _, a in each.elements] for each in pages]
    assert attributes[0] == attributes[1]


def test_the_names_are_all_there_as_a_terminal_would_show_them() -> None:
    text = page(HOSTILE[0], full(HOSTILE), rows(HOSTILE), [])
    assert [name for name, *_ in data(text)] == [printable(name) for name in HOSTILE]
    assert [nearest for _, _, nearest, _ in data(text)] == [printable(HOSTILE[i - 1]) for i in range(len(HOSTILE))]
    assert Page(text).text["h1"] == [HOSTILE[0]]
    assert {printable(HOSTILE[0]), printable(HOSTILE[1]), printable(HOSTILE[-1])} <= set(Page(text).text["bdi"])
    text.encode()  # a lone surrogate could not be written


def test_the_page_loads_nothing_and_may_load_nothing() -> None:
    names = ["a.png", "b.png", "c.png"]
    table = [replace(row, thumbnail=png()) for row in rows(names)]
    text = page("bank", full(), table, [PagePicture("Spread", "How it is spread.", png(8))])
    assert not re.search(r"https?:|url\(|@import|<link|<base|<iframe", text)
    sources = [a["src"] for _, a in Page(text).elements if "src" in a]
    assert [b64decode((source or "").removeprefix("data:image/png;base64,")) for source in sources] == [png(8)]
    assert not [a for _, a in Page(text).elements if set(a) & {"href", "srcset", "action", "style"}]
    policy = next(a["content"] for _, a in Page(text).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert [b64decode(row[4]) for row in data(text)] == [png()] * 3


def test_every_number_of_the_inspection_can_be_read_without_a_script() -> None:
    result = full()
    shown = Page(page("bank", result, rows(["a"]), [], omitted=1233)).words
    plain = [result.separation[s] for s in ("raw", "learned")] + [result.bounds]
    numbers = [value for part in plain for value in vars(part).values() if isinstance(value, float)]
    spread = [
        value for part in plain[:2] if isinstance(part, SeparationReport) for value in (part.quantiles or {}).values()
    ]
    wanted = {number(value) for value in [*numbers, *spread]} - {number(0.567), number(0.0593)}
    wanted |= {"56.7 %", "5.9 %", "65.4 %", "87.6 %", "0.987654", "0.954320", number(1.03 * 0.0345)}
    wanted |= {"1,234", "784", "28 × 28", "345", "6,789", "0.321", "77", "88", "12.25 → 3.125", "432", "1,110"}
    wanted |= {"1,200", "34", "0.2345 → 0.0678", "9", "3", "71", "17", "19", "1,233", "mask:0.5, gaussian:0.25"}
    assert not {each for each in wanted if each not in shown}


def test_theorem_2_is_said_of_every_pattern_where_weights_can_vanish() -> None:
    table = [replace(row, exact=row.delta >= 0.251) for row in rows(["a", "b", "c"])]
    assert [exact for _, _, _, exact in data(page("bank", full(), table, []))] == [False, True, True]
    assert "exact fixed point" in Page(page("bank", full(), table, [])).text["button"]
    assert "exact fixed point" not in Page(page("bank", full(), rows(["a"]), [])).text["button"]


def test_bounds_of_the_raw_patterns_stand_beside_those_of_the_map() -> None:
    raw = replace(full().bounds, guaranteed_radius=0.1234)
    assert "0.1234" in Page(page("bank", replace(full(), raw_bounds=raw), [], [])).words


def test_a_page_of_20_000_patterns_stays_small() -> None:
    names = [f"folder/picture-{i:05}.png" for i in range(20_000)]
    assert len(page("bank", full(), rows(names), []).encode()) < 5e6


def test_what_is_unknown_is_a_dash() -> None:
    text = page("one", empty(), [PatternRow("only", float("nan"), "", None)], [])
    assert data(text) == [["only", None, "", None]]
    assert "nan" not in Page(text).words.lower() and "None" not in Page(text).words


def test_the_statistics_of_a_real_bank_make_a_page() -> None:
    X = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    result = hopmem.inspect(hopmem.MemoryBank.from_patterns(X))
    raw = result.separation["raw"]
    assert raw is not None and number(raw.min) in Page(page("bank", result, [], [])).words


def test_a_bank_in_which_all_is_well_needs_one_sentence() -> None:
    (sentence,) = advice(well())
    assert sentence.startswith("Nothing needs to be done")


def test_a_single_pattern_needs_others() -> None:
    (sentence,) = advice(empty())
    assert "hopmem store --append" in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"duplicates": [["a.png", "b.png"]]}, "`a.png` and `b.png` are equal: a query can never tell them apart"),
        ({"duplicates": [["a", "b", "c", "d"], ["e", "f"]]}, "`a`, `b`, `c` and 1 more are equal (1 other group"),
        ({"closest_pairs": [ClosePair("3.png", "17.png", 0.9812)]}, "`3.png` and `17.png` are 98.1 % alike: queries"),
        ({"closest_pairs": [ClosePair("3", "17", 0.99999)]}, "99.9 % alike"),
        ({"closest_pairs": [ClosePair("a", "b", 0.96), ClosePair("a", "c", 0.95)]}, "and 1 other pair at least 95 %"),
        ({"objective": "raw", "separation": {"raw": None, "learned": None}}, "run hopmem optimize BANK --noise"),
        ({"appended": Appended(10, 3, 0.5, 0.1, 1)}, "1 of the 3 patterns that were appended lies closer"),
        ({"self_test": SelfTest(["mask:0.5"], 64, 0.9899)}, "under mask:0.5 finds only 98.9 % of 64 queries"),
        ({"stored": StoredReport(64, 0.75, ["x.png"])}, "25 % of the 64 patterns that were run are not stored"),
        ({"stored": StoredReport(64, 0.75, ["x.png"])}, "`x.png` among them"),
        ({"stored": StoredReport(64, 0.75, [])}, "raise β to 555.5"),
        ({"metastable": {"1": 9, "2": 1}}, "10 % of the answers are blends"),
        ({"bounds": full().bounds}, "Theory guarantees the answer to no query"),
    ],
)
def test_what_is_not_well_is_named_with_what_to_do(changes: dict[str, Any], words: str) -> None:
    (sentence,) = advice(replace(well(), **changes))
    assert words in sentence


def test_equal_patterns_are_not_called_alike_once_more() -> None:
    twins = replace(well(), duplicates=[["a", "b"]], closest_pairs=[ClosePair("b", "a", 1.0)])
    assert len(advice(twins)) == 1


def test_advice_is_short_and_begins_with_what_matters_most() -> None:
    found = advice(full(HOSTILE))
    assert 1 < len(found) <= MOST
    assert "are equal" in found[0]
    assert all(line.isprintable() and len(line) < 600 for line in found)


def test_advice_needs_no_number_that_may_be_missing() -> None:
    unknown = replace(full(), bounds=empty().bounds, separation=empty().separation, stored=None, self_test=None)
    assert "None" not in " ".join(advice(unknown))
    assert "β" not in " ".join(advice(replace(well(), bounds=empty().bounds)))


def browse(tmp_path: Path, text: str, query: str = "", width: int = 1000) -> tuple[Page, str]:
    """Open a page in a browser without a window: what is in it once its script has run, and what was logged."""
    assert BROWSER is not None
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    address = file.as_uri() + (f"#q={quote(query)}" if query else "")
    own = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    run = subprocess.run([BROWSER, *QUIET, *own, address], capture_output=True, timeout=120, check=True)
    return Page(run.stdout.decode()), run.stderr.decode(errors="replace")


def shown(found: Page) -> list[str]:
    """The names in the table of patterns."""
    kinds = [attributes.get("class") for tag, attributes in found.elements if tag == "div"]
    cells = [text for text, kind in zip(found.text["div"], kinds, strict=True) if kind == "name"]
    return cells[::2]  # every other one is the closest pattern's


def complaints(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line or "Uncaught" in line or "Refused" in line]


@needs_browser
def test_the_search_filters_the_table_and_says_how_many_are_left(tmp_path: Path) -> None:
    names = [f"picture-{i}.png" for i in range(2000)]
    found, log = browse(tmp_path, page("bank", full(), rows(names), []), "PICTURE-199")
    assert sorted(shown(found)) == sorted(name for name in names if "picture-199" in name)
    assert "11 of 2,000 patterns" in found.words
    assert not complaints(log)


@needs_browser
def test_a_long_table_is_shown_in_parts_smallest_delta_first(tmp_path: Path) -> None:
    names = [f"picture-{i}.png" for i in range(20_000)]
    found, log = browse(tmp_path, page("bank", full(), rows(names)[::-1], []))
    assert shown(found) == names[:200]
    assert "20,000 of 20,000 patterns" in found.words and "Show 200 more of 19,800" in found.words
    assert not complaints(log)


@needs_browser
@pytest.mark.parametrize("guarded", [True, False], ids=["as it is", "even without its policy"])
def test_a_hostile_name_does_nothing_and_is_shown_as_text(tmp_path: Path, guarded: bool) -> None:
    table = [replace(row, thumbnail=png()) for row in rows(HOSTILE)]
    text = page("safe", full(HOSTILE), table, [PagePicture(HOSTILE[3], HOSTILE[4], png())])
    found, log = browse(tmp_path, text if guarded else unguarded(text))
    assert found.text["title"] == ["safe · hopmem inspect"]
    assert shown(found) == [printable(name) for name in HOSTILE]
    assert len(found.text["script"]) == 2 and "iframe" not in found.text
    assert not complaints(log)


@needs_browser
@pytest.mark.parametrize("query", ["%", "<script>", "`", "[", "no such name"])
def test_a_search_is_plain_text(tmp_path: Path, query: str) -> None:
    text = page("bank", full(), rows([*HOSTILE, "100 %", "[a]"]), [])
    found, log = browse(tmp_path, text, query)
    assert sorted(shown(found)) == sorted(n for n in map(printable, [*HOSTILE, "100 %", "[a]"]) if query in n)
    assert not complaints(log)


@needs_browser
def test_a_heading_sorts_and_typing_filters(tmp_path: Path) -> None:
    """A copy of the page has a hand of its own: it selects a heading, and another twice, and then types."""
    hand = """<script>
      const select = (key) => document.querySelector(`[data-key=${key}]`).click();
      select("name"); document.title = document.querySelector(".name").textContent;
      select("delta"); select("delta");
      document.title += " " + document.querySelector("[aria-sort=descending]").textContent;
      const search = document.getElementById("search");
      search.value = "p"; search.dispatchEvent(new Event("input"));
    </script>"""
    text = page("bank", full(), rows(["p10", "q3", "p9", "p2"]), [])
    found, log = browse(tmp_path, unguarded(text).replace("</body>", hand + "</body>"))
    assert found.text["title"] == ["p2 Δ"]
    assert shown(found) == ["p2", "p9", "p10"]  # the largest Δ first
    assert not complaints(log)


@needs_browser
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_page_never_scrolls_sideways(tmp_path: Path, width: int) -> None:
    """A window is never narrower than 500 pixels, so a copy of the page that tells its width stands in a frame."""
    wide = PagePicture("Wide", "m" * 3000, png(2000))
    table = [replace(row, thumbnail=png(64)) for row in rows(HOSTILE)]
    telling = '<script>parent.postMessage(document.documentElement.scrollWidth + " of " + innerWidth, "*")</script>'
    copy = unguarded(page("b" * 4000, full(HOSTILE), table, [wide])).replace("</body>", telling + "</body>")
    (tmp_path / "copy.html").write_text(copy, encoding="utf-8")
    listening = "<script>onmessage = (event) => { document.title = event.data; }</script>"
    frame = f'<iframe src="copy.html" style="width:{width}px;height:800px;border:0"></iframe>'
    found, _ = browse(tmp_path, f"<!DOCTYPE html><title></title><body>{listening}{frame}</body>", width=width + 40)
    inside = re.fullmatch(r"(\d+) of (\d+)", found.text["title"][0])
    assert inside is not None
    assert int(inside[2]) == width
    assert int(inside[1]) <= width


def unguarded(text: str) -> str:
    """A copy of a page without its policy.

    Returns:
        The HTML.
    """
    copy, times = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert times == 1
    return copy
