"""Looks at the pages of the site like its readers, for `check.rs`. Appended to `webdriver.py`.

Arguments: the site's folder, axe's script, a folder for screenshots, and pages.
Prints what is wrong, a line each: links to nowhere, what is loaded from elsewhere, errors in the
console, pages wider than a phone, and what axe finds serious.
"""

import functools
import html.parser
import urllib.parse

# What a page loads by itself, without a click.
LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href")}
AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, { resultTypes: ["violations"] }).then(found => done(found.violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(node => node.html.slice(0, 120)).join(" | ")}`)));
"""
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}


class Page(html.parser.HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            if (tag, name) in LOADS:
                self.loads.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)


@functools.cache
def page(path):
    return Page(path.read_text())


def is_elsewhere(link):
    return bool(urllib.parse.urlsplit(link).scheme) or link.startswith("//")


def wrong_links(site):
    for path in sorted(site.rglob("*.html")):
        if "api" in path.relative_to(site).parts:
            continue  # rustdoc checks its own
        for link in page(path).loads:
            if is_elsewhere(link) and not link.startswith("data:"):
                yield f"{path.relative_to(site)} loads {link}"
        for link in page(path).links + page(path).loads:
            if link is None or is_elsewhere(link):
                continue
            parts = urllib.parse.urlsplit(link)
            if parts.path.startswith("api/") and not (site / "api").exists():
                continue  # made without the documentation
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                yield f"{path.relative_to(site)} links to {link}"
            elif parts.fragment and target.suffix == ".html" and "api" not in target.parts:
                if urllib.parse.unquote(parts.fragment) not in page(target).anchors:
                    yield f"{path.relative_to(site)} links to {link}, where there is no such heading"


def wrong_in_browser(address, axe, name, browser, is_phone):
    for theme in ["light", "dark"]:
        media = DARK if theme == "dark" else {"features": []}
        browser.call("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params=media)
        browser.open(f"{address}/{name}")
        browser.js(axe)
        script = {"script": AXE, "args": []}
        for found in browser.call("POST", "/execute/async", **script):
            yield f"{name} ({theme}): {found}"
    if is_phone and (pixels := browser.js(OVERFLOW)):
        yield f"{name} is {pixels} pixels wider than a phone"


def main(site, axe, screenshots, *names):
    site, axe = Path(site), Path(axe).read_text()
    wrong = list(wrong_links(site))
    with served(site) as address:
        for options in [{}, {"mobileEmulation": PHONE}]:
            with Browser(Path(screenshots, "site.png"), **options) as browser:
                for name in names:
                    wrong += wrong_in_browser(address, axe, name, browser, bool(options))
    print("\n".join(wrong))
    sys.exit(bool(wrong))


main(*sys.argv[1:])
