"""report.html in a real browser, where one is installed: no complaint, every image there, readable wide and narrow."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from analysis_data import LARGE, SMALL
from conftest import lacking
from report_data import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--enable-logging=stderr", "--dump-dom"),
)
WIDTHS = (400, 1400)
SMALLEST_LETTER_POINTS = 5.5
"""In a figure at its printed size, 300 pixels an inch (test_analysis_figures.py asserts it)."""
SMALLEST_LETTER_PIXELS = 7.0
SMALLEST_TEXT_PIXELS = 12.0

# The page in a frame of each width, since a window cannot be as narrow as a phone, with all its details opened.
HARNESS = """<!DOCTYPE html><title>harness</title><body>
<script>
const found = {}, widths = %s;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border: 0; width: ${width}px; height: 900px`;
  frame.onload = () => {
    const page = frame.contentDocument, view = frame.contentWindow;
    for (const details of page.querySelectorAll("details")) details.open = true;
    const images = [...page.images], letters = [];
    const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
      if (texts.currentNode.data.trim())
        letters.push(parseFloat(view.getComputedStyle(texts.currentNode.parentElement).fontSize));
    found[width] = {
      scroll: page.documentElement.scrollWidth,
      images: images.length,
      broken: images.filter(image => !image.complete || !image.naturalWidth).length,
      pixels_per_inch: Math.min(...images.map(image => image.width / image.naturalWidth * 300)),
      smallest_text: Math.min(...letters),
    };
    if (Object.keys(found).length == widths.length) {
      const result = document.createElement("pre");
      result.textContent = JSON.stringify(found);
      document.body.replaceChildren(result);
    }
  };
  frame.src = "%s";
  document.body.append(frame);
}
</script>
"""


@pytest.fixture(autouse=True, scope="module")
def browser() -> None:
    if CHROMIUM is None:
        lacking("no chromium on this machine: the report is not looked at; on Debian: apt-get install chromium")


def look(page: Path, folder: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
    """(what was measured at each width, console messages)"""
    harness = folder / "harness.html"
    harness.write_text(HARNESS % (json.dumps(WIDTHS), page.as_uri()))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--timeout=60000", harness.as_uri()]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120)
    result = re.search(r"<pre>(.*?)</pre>", outcome.stdout, re.DOTALL)
    assert result, outcome.stderr[-2000:]
    return json.loads(html.unescape(result[1])), re.findall(r"CONSOLE.*", outcome.stderr)


@pytest.mark.parametrize(
    ("grid", "layers", "images"),
    [pytest.param(SMALL, 4, 17, id="small"), pytest.param(LARGE, 12, 31, id="large", marks=pytest.mark.slow)],
)
def test_the_report_is_whole_and_readable(grid, layers, images, tmp_path):
    found, console = look(write_page(tmp_path, grid, layers=layers), tmp_path)
    assert console == []
    for width in WIDTHS:
        measured = found[str(width)]
        assert measured["scroll"] <= width, "the page scrolls sideways"
        assert (measured["images"], measured["broken"]) == (images, 0)
        assert measured["pixels_per_inch"] * SMALLEST_LETTER_POINTS / 72.0 >= SMALLEST_LETTER_PIXELS
        assert measured["smallest_text"] >= SMALLEST_TEXT_PIXELS


def test_the_look_finds_what_is_wrong(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<!DOCTYPE html><title>wrong</title><body><img src='absent.png' alt=''><p style='font-size: 6px'>small</p>"
        "<div style='width: 900px'>wide</div><script>console.error('a complaint')</script>"
    )
    found, console = look(page, tmp_path)
    assert any("a complaint" in line for line in console)
    assert found["400"]["scroll"] > 400 and found["400"]["broken"] == 1 and found["400"]["smallest_text"] == 6.0
    assert found["1400"]["scroll"] == 1400
