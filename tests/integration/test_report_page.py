"""The page as a person uses it: in a headless Chromium, from disk."""

import base64
import http.server
import shutil
import subprocess
import threading

import pytest
from helpers.reported import write_run

from detcurate.cli import main

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make setup` installs it")

NAMES = ("<script>window.hacked = 1</script>", "سيارة أجرة", "日本語の車", '"><img src=x onerror="window.hacked=1">')
A4 = {"width": 695, "height": 1000}  # px of the printed page, less its margins
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_CONTRAST = """() => {
  const number = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = number(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("main *")) {
    if (node.closest("[hidden], .stage, button:disabled, .absent")) continue;
    const texts = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
    if (!texts.length || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const colour = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
    if (!colour.startsWith("rgb")) continue;
    const [a, b] = [light(number(colour)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${node.tagName} ${texts[0].data.trim().slice(0, 30)}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: one on the PATH, or Playwright's own."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium can be started here, install one: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a run with hostile class and file names, minimum quotas, near-duplicates and a missing image."""
    folder = tmp_path_factory.mktemp("attack")
    options = ("CURATE.SELECT.EMPTY_MINIMUM", 1, "CURATE.SELECT.DUPLICATE_SIMILARITY", 0.9)
    _, output = write_run(folder, classes=NAMES, select=options, file_name="<i>{:03d}</i>&.png")
    assert main(["report", str(output)]) == 0
    return output / "report" / "index.html"


@pytest.fixture
def open_page(browser, report):
    """Return a function that opens the page; it gives the page and what it logged and asked for."""
    pages = []

    def opened(path=report, **options: object):
        page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        pages.append(page)
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
        page.goto(path.as_uri())
        return page, said

    yield opened
    for page in pages:
        page.close()


def test_page_opens_from_disk_without_requests(open_page, report):
    page, said = open_page()
    page.wait_for_load_state("networkidle")
    assert said == [report.as_uri()]
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_page_images_load_in_both_sizes(open_page):
    page, _ = open_page()
    assert page.evaluate("[...document.images].length") > 20
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    broken = page.evaluate(
        """async () => {
          const pictures = Object.values(JSON.parse(document.getElementById("payload").textContent).pictures);
          const sizes = await Promise.all(pictures.map(async ({ src, size }) => {
            const image = new Image();
            image.src = src;
            await image.decode();
            return image.naturalWidth === size[0] && image.naturalHeight === size[1];
          }));
          return sizes.filter((fits) => !fits).length;
        }"""
    )
    assert broken == 0


def test_page_shows_names_without_running_them(open_page):
    page, said = open_page()
    page.locator(".shot").first.click()
    assert page.evaluate("window.hacked") is None
    assert len(said) == 1
    texts = page.locator("table").filter(has_text="Boxes by class").locator("tbody th").all_inner_texts()
    assert set(texts) == set(NAMES)
    assert page.locator("#viewer-title").inner_text().startswith("<i>")
    assert set(page.locator("#filter-class option").all_inner_texts()) == {"all", *NAMES}
    assert page.locator("main i:not(.key), img[src=x]").count() == 0


def test_page_policy_blocks_foreign_script(browser, report, tmp_path):
    """The policy alone stops it, should an escape ever be forgotten."""
    text = report.read_text().replace(
        "</main>", "<script>window.hacked = 1</script><img src=x onerror='hacked=1'></main>"
    )
    (tmp_path / "attacked.html").write_text(text)
    page = browser.new_page()
    page.goto((tmp_path / "attacked.html").as_uri())
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.hacked") is None
    page.close()


def test_filters_hide_and_count_tiles(open_page):
    page, _ = open_page()
    tiles = page.locator(".tile")
    total = tiles.count()
    assert page.locator("#filter-count").inner_text() == f"{total} of {total} pictures"
    page.select_option("#filter-kept", "left")
    left = page.locator(".tile:visible")
    assert 0 < left.count() < total
    assert set(left.locator(".badge").all_inner_texts()) == {"✕ removed"}
    page.select_option("#filter-class", label=NAMES[1])
    both = page.locator(".tile:visible").count()
    assert both < total
    page.fill("#filter-text", "no such file")
    assert page.locator("#filter-count").inner_text() == f"0 of {total} pictures"
    page.fill("#filter-text", "")
    page.select_option("#filter-kept", "")
    page.select_option("#filter-class", "")
    assert page.locator(".tile:visible").count() == total


def test_layers_switch_in_tiles_and_viewer(open_page):
    page, _ = open_page()
    first = page.locator("#gallery-most .shot").first
    truth, votes = first.locator(".drawn.layer-truth"), first.locator(".drawn.layer-votes")
    assert truth.evaluate("node => getComputedStyle(node).display") == "inline"
    assert votes.evaluate("node => getComputedStyle(node).display") == "none"
    page.locator(".filters .layer[data-layer=votes]").click()
    assert votes.evaluate("node => getComputedStyle(node).display") == "inline"
    assert votes.locator("rect").count() > 0
    first.click()
    shown = page.locator("#viewer-image .drawn.layer-truth")
    page.keyboard.press("1")
    assert shown.evaluate("node => getComputedStyle(node).display") == "none"
    assert page.locator("#viewer .layer[data-layer=truth]").get_attribute("aria-pressed") == "false"
    page.locator("#viewer .layer[data-layer=truth]").click()
    assert shown.evaluate("node => getComputedStyle(node).display") == "inline"


def test_viewer_draws_boxes_of_data(open_page):
    page, _ = open_page()
    button = page.locator("#gallery-most .shot").first
    payload = page.evaluate("JSON.parse(document.getElementById('payload').textContent)")
    picture = payload["pictures"][button.get_attribute("data-picture")]
    button.click()
    for layer in ("truth", "consensus", "votes"):
        assert page.locator(f"#viewer-image rect.{layer}").count() == len(picture[layer])
    sides = page.locator("#viewer-image rect.truth").first.evaluate(
        "node => ['x', 'y', 'width', 'height'].map((name) => Number(node.getAttribute(name)))"
    )
    x1, y1, x2, y2 = picture["truth"][0][:4]
    assert sides == [x1, y1, x2 - x1, y2 - y1]
    assert page.locator("#viewer-objects caption").inner_text() == "Objects; 3 members vote"


def test_keyboard_opens_steps_zooms_and_closes(open_page):
    page, _ = open_page()
    first = page.locator("#gallery-wrong_class .shot").first
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    title, place = page.locator("#viewer-title"), page.locator("#viewer-place")
    count = int(place.inner_text().split()[-1])
    assert place.inner_text() == f"1 of {count}"
    assert page.locator("#viewer-previous").is_disabled()
    whole = page.locator("#viewer-image").get_attribute("viewBox")
    page.keyboard.press("z")
    assert page.locator("#viewer-image").get_attribute("viewBox") != whole
    page.keyboard.press("z")
    before = title.inner_text()
    for _ in range(count + 2):  # it stops at the last
        page.keyboard.press("ArrowRight")
    assert place.inner_text() == f"{count} of {count}"
    for _ in range(count + 2):
        page.keyboard.press("ArrowLeft")
    assert title.inner_text() == before
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert first.evaluate("node => node === document.activeElement")


def test_stepping_follows_filters(open_page):
    page, _ = open_page()
    page.select_option("#filter-kept", "kept")
    shown = page.locator("#gallery-most .tile:visible").count()
    page.locator("#gallery-most .tile:visible .shot").first.click()
    assert page.locator("#viewer-place").inner_text() == f"1 of {shown}"


def test_controls_have_names_and_keyboard_access(open_page):
    page, _ = open_page()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("main button, main select, main input, main a, #viewer button")]
          .filter((node) => node.tabIndex < 0
            || !(node.textContent.trim() || node.querySelector("img[alt]") || node.labels?.length))
          .map((node) => node.outerHTML.slice(0, 120))"""
    )
    assert [text for text in unnamed if "absent" not in text] == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"


def test_pictures_and_figures_have_alternative_texts(open_page):
    page, _ = open_page()
    assert page.evaluate("[...document.images].filter((image) => image.alt.length < 12).length") == 0
    labels = page.locator("[role=img]:not(#viewer-image)").evaluate_all("nodes => nodes.map((node) => node.ariaLabel)")
    assert len(labels) >= 8
    assert all(len(label) > 25 for label in labels)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast_is_sufficient(open_page, scheme):
    page, _ = open_page(color_scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(15, 18, 21)") == (scheme == "dark")
    assert page.evaluate(_CONTRAST) == []


def test_print_cuts_no_table(open_page):
    page, _ = open_page()
    page.emulate_media(media="print")
    page.set_viewport_size(A4)
    cut = page.evaluate(
        """() => [...document.querySelectorAll("main table, main figure svg, main .tiles, main pre")]
          .filter((node) => node.getClientRects().length)
          .filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
          .map((node) => node.textContent.slice(0, 40))"""
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for hidden in (".top", ".filters"):
        assert not page.locator(hidden).first.is_visible()


def test_print_breaks_no_table_row(open_page, tmp_path):
    pdftotext = shutil.which("pdftotext")
    if pdftotext is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    page, _ = open_page()
    path = tmp_path / "page.pdf"
    page.pdf(path=str(path), prefer_css_page_size=True, print_background=True)
    text = subprocess.run([pdftotext, "-layout", path, "-"], capture_output=True, text=True, check=True).stdout
    pages = text.split("\f")
    [arms] = [number for number, shown in enumerate(pages) if "AP medium" in shown and "curated" in shown]
    assert all(arm in pages[arms] for arm in ("curated", "random", "full"))
    assert len(pages) > 2


def test_page_policy_blocks_requests(browser, report, tmp_path):
    """Not even a picture from a server on this machine."""
    requested = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            requested.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: object):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        image = f"<img src='http://127.0.0.1:{server.server_port}/x.png'></main>"
        (tmp_path / "leaking.html").write_text(report.read_text().replace("</main>", image))
        page = browser.new_page()
        page.goto((tmp_path / "leaking.html").as_uri())
        page.wait_for_load_state("networkidle")
        page.close()
        server.shutdown()
    assert requested == []


def test_missing_image_shows_reason_and_boxes(open_page, tmp_path):
    _, output = write_run(tmp_path)
    for path in (tmp_path / "data" / "images").glob("0*.png"):
        path.unlink()
    assert main(["report", str(output)]) == 0
    page, said = open_page(output / "report" / "index.html")
    assert len(said) == 1
    assert page.evaluate("document.images.length") == 0
    page.locator("#gallery-most .shot").first.click()
    assert page.locator("#viewer-problem").inner_text() == "the file is missing"
    assert page.locator("#viewer-image rect.truth").count() > 0


def test_pictures_are_jpegs_of_images(open_page, tmp_path):
    page, _ = open_page()
    uri = page.locator("#gallery-most img").first.get_attribute("src")
    assert base64.b64decode(uri.partition(",")[2])[:2] == b"\xff\xd8"
