"""Is the built web site whole? `python tools/check_docs.py [_docs] [--screens DIR]`.

Of every page, from its file: links and anchors inside the site, pictures and their words, headings,
addresses of other hosts. In headless Chromium, of every page at the width of a phone and of some at
that of a desk: nothing scrolls sideways, no console error, no formula with an error, no request to
another host; of some, in both modes, what axe finds (contrast, names, landmarks).
"""

import argparse
import functools
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lxml import html as markup

ROOT = Path(__file__).resolve().parents[1]
PHONE, DESK = (400, 800), (1280, 900)
# pages that are looked at in every way, as far as they are there
LOOKED_AT = (
    *("index", "syllabus", "glossary", "lib/losses/21_dpo", "lib/losses/31_rloo"),
    *("tutorials/over_optimisation", "reports/comparison", "reports/ledger", "bench", "faults"),
    *("api/index", "api/prefkit.losses.dpo", "pipelines/preference", "search"),
)
# What axe says of the markup of Sphinx and of the theme (signatures, the navigation's folds, the
# dialogue of the search), and of the corner cells of pandas' tables
NOT_OURS = {"definition-list", "empty-table-header", "region", "summary-name"}
WIDE = """() => {
  const most = document.documentElement.clientWidth + 1, page = document.scrollingElement;
  if (page.scrollWidth <= most) return [];
  const wide = [...document.querySelectorAll('.bd-article *')]
    .filter(one => one.getBoundingClientRect().right > most);
  return [`${page.scrollWidth} px: ` + wide.slice(0, 3).map(one =>
    `${one.tagName.toLowerCase()}.${one.className}`).join(', ')];
}"""


@dataclass
class Site:
    "A folder of pages, parsed once each."

    folder: Path
    trees: dict[str, markup.HtmlElement] = field(default_factory=dict)

    def __post_init__(self):
        for file in sorted(self.folder.rglob("*.html")):
            name = file.relative_to(self.folder).as_posix()
            if not name.startswith("_"):
                self.trees[name] = markup.parse(str(file)).getroot()

    @functools.cached_property
    def anchors(self) -> dict[str, set[str]]:  # page -> its ids
        return {name: set(tree.xpath("//@id")) for name, tree in self.trees.items()}

    def target(self, page: str, address: str) -> tuple[str, str]:  # file, anchor
        "Where an address of a page leads within the site."
        parts = urlsplit(address)
        path = unquote(parts.path)
        if not path:
            return page, unquote(parts.fragment)
        file = os.path.normpath(os.path.join(os.path.dirname(page), path))
        return file, unquote(parts.fragment)


def foreign(address: str) -> bool:
    return bool(re.match(r"[a-z][a-z+.-]*:|//", address))


def wrong_links(site: Site, page: str) -> Iterator[str]:
    "Links and pictures of a page that lead nowhere within the site."
    tree = site.trees[page]
    for address in tree.xpath("//a/@href | //img/@src | //source/@srcset"):
        if foreign(address):
            continue
        file, anchor = site.target(page, address)
        if file in site.trees:
            if anchor and anchor not in site.anchors[file]:
                yield f"{page}: {address}: no such anchor"
        elif not (site.folder / file).is_file():
            yield f"{page}: {address}: no such file"


def wrong_loads(site: Site, page: str) -> Iterator[str]:
    "What a page takes from another host while it is read."
    taken = "//img/@src | //script/@src | //link[@rel='stylesheet']/@href | //iframe/@src"
    for address in site.trees[page].xpath(taken):
        if re.match(r"https?:|//", address):
            yield f"{page}: loads {address}"


def wrong_pictures(site: Site, page: str) -> Iterator[str]:
    for picture in site.trees[page].xpath("//article//img"):
        if not (picture.get("alt") or "").strip():
            yield f"{page}: {picture.get('src')}: no alt text"


def wrong_headings(site: Site, page: str) -> Iterator[str]:
    "A page has one heading of the first level, and none skips a level."
    article = site.trees[page].xpath("//article")
    levels = (
        [int(one.tag[1]) for one in article[0].iter() if re.fullmatch(r"h[1-6]", str(one.tag))]
        if article
        else []
    )
    if article and levels.count(1) != 1:
        yield f"{page}: {levels.count(1)} headings of the first level"
    for before, after in zip(levels, levels[1:], strict=False):
        if after > before + 1:
            yield f"{page}: a heading of level {after} after one of level {before}"


def wrong_files(site: Site) -> list[str]:
    "What the files themselves show."
    checks = (wrong_links, wrong_loads, wrong_pictures, wrong_headings)
    return [said for page in site.trees for check in checks for said in check(site, page)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        "Say nothing of requests."


class Browser:
    "Chromium before a server of the site; what goes wrong on a page is gathered in `found`."

    def __init__(self, site: Site, chromium: str, play):
        self.site, self.found = site, []
        handler = functools.partial(Quiet, directory=str(site.folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{self.server.server_port}/"
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        self.chromium = play.chromium.launch(executable_path=chromium, args=options)

    def close(self):
        self.chromium.close()
        self.server.shutdown()

    def page(self, size: tuple[int, int], mode: str = "light"):
        "A tab; its console errors and requests to others are noted."
        width, height = size
        context = self.chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=mode
        )
        tab = context.new_page()
        tab.on("console", lambda said: said.type == "error" and self.note(tab, said.text))
        tab.on("pageerror", lambda error: self.note(tab, str(error)))
        tab.on("request", lambda asked: self.check_request(tab, asked.url))
        tab.on("requestfailed", lambda asked: self.check_failure(tab, asked))
        return tab

    def note(self, tab, said: str):
        self.found.append(f"{tab.url.removeprefix(self.base)}: {said}")

    def check_failure(self, tab, asked):
        "A request that failed, unless the tab has gone on to another page before it was answered."
        if "ERR_ABORTED" not in (asked.failure or ""):
            self.note(tab, f"{asked.url}: {asked.failure}")

    def check_request(self, tab, address: str):
        if not address.startswith((self.base, "data:", "blob:")):
            self.note(tab, f"asks {address}")

    def look(self, tab, name: str):
        "Open a page, wait for its formulas, and see whether it is wider than the screen."
        tab.goto(self.base + name, wait_until="load")
        if tab.query_selector(".math"):
            tab.evaluate("() => window.MathJax?.startup?.promise")
        for error in tab.query_selector_all("mjx-merror"):
            self.note(tab, f"formula: {error.get_attribute('data-mjx-error')}")
        for said in tab.evaluate(WIDE):
            width = tab.viewport_size["width"]
            self.note(tab, f"wider than {width} px: {said}")

    def axe(self, tab, mode: str):
        "What axe finds wrong with the page that is open; in the dark, with its contrast."
        from axe_playwright_python.sync_playwright import Axe

        options: dict = {"preload": False}  # it would ask for a style sheet again
        if mode == "dark":
            options["runOnly"] = ["color-contrast"]
        found = Axe().run(tab, options=options)
        for rule in found.response["violations"]:
            if rule["id"] not in NOT_OURS:
                places = "; ".join(" ".join(node["target"]) for node in rule["nodes"][:3])
                self.note(tab, f"axe, {mode}: {rule['id']} ({len(rule['nodes'])}): {places}")


def wrong_in_browser(
    site: Site,
    chromium: str,
    screens: Path | None = None,  # where pictures of the pages that are looked at go
) -> list[str]:
    "What Chromium shows."
    from playwright.sync_api import sync_playwright

    looked_at = [f"{name}.html" for name in LOOKED_AT if f"{name}.html" in site.trees]
    with sync_playwright() as play:
        browser = Browser(site, chromium, play)
        tab = browser.page(PHONE)
        for name in site.trees:
            browser.look(tab, name)
        for mode in ("light", "dark"):
            tab = browser.page(DESK, mode)
            for name in looked_at:
                browser.look(tab, name)
                browser.axe(tab, mode)
            for size in (DESK, PHONE) if screens else ():
                tab = browser.page(size, mode)
                for name in looked_at:
                    browser.look(tab, name)
                    shown = name.replace("/", "_").removesuffix(".html")
                    tab.screenshot(path=screens / f"{shown}_{size[0]}_{mode}.png")
        browser.close()
    return browser.found


def find_chromium() -> str:  # empty: there is none
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), "")


def report(found: Iterable[str]) -> int:  # exit status
    found = list(dict.fromkeys(found))
    for said in found:
        print(said)
    return int(bool(found))


def main() -> int:  # exit status
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "_docs")
    parser.add_argument("--screens", type=Path, help="put pictures of some pages there")
    given = parser.parse_args()
    site = Site(given.folder)
    if not site.trees:
        sys.exit(f"{given.folder}: no pages. Build them: make docs")
    if given.screens:
        given.screens.mkdir(parents=True, exist_ok=True)
    found, chromium = wrong_files(site), find_chromium()
    if chromium:
        found += wrong_in_browser(site, chromium, given.screens)
    else:
        print("Chromium is not there: widths, formulas and contrast are not checked")
    status = report(found)
    print(f"{len(site.trees)} pages, {len(set(found))} faults")
    return status


if __name__ == "__main__":
    sys.exit(main())
