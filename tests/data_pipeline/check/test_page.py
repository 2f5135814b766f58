from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from data_pipeline.case import Case
from data_pipeline.check.checked_case import BINS, CheckedCase
from data_pipeline.check.page import html_page
from data_pipeline.conventions import CONVENTIONS
from data_pipeline.reading.findings import Finding

HOSTILE = ("<b>&", "</pre></title><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}{% raw %}")


class Elements(HTMLParser):
    """The start tags of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))

    def handle_data(self, data):
        self.text += data


def page_with(text: str) -> str:
    """A page that has the text everywhere a file name, header or path can put it."""
    finding = Finding("warning", Path(text), f"found {text}", f"do {text}", f"run {text}")
    images = MappingProxyType({"t1": Path(text) / text})
    case = Case(text, text, images, None, CONVENTIONS["brats2018"], text)
    counts = {"t1": np.ones(BINS, np.int64)}
    checked = CheckedCase(case, (finding,), (3, 4, 5), (1.0, 1.0, 1.0), {"WT": 1.5}, counts, {"t1": 1}, b"png")
    return html_page([Path(text)], [f"decided {text}"], [checked], [finding])


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_files_never_becomes_markup(text):
    page = Elements(page_with(text))
    assert page.tags == Elements(page_with("harmless")).tags
    assert page.text.count(text) > 10
