"""Uses the draw-a-digit panel as readers do, for `xtask/src/browser.rs`; goes on from `webdriver.py`.

Arguments: where the panel is, a page or a notebook, which is opened in JupyterLab; a file for a screenshot; "desktop", with
a mouse, or "phone", 360 pixels wide and with a finger.
Reads {"images": [[pixel, …], …], "strokes": [[[x, y], …], …]} from standard input, places from 0 to 1, and writes as JSON
to standard output what the panel makes of them.
"""

PHONE = {"deviceMetrics": {"width": 360, "height": 760, "pixelRatio": 2, "touch": True}}
TAB, ENTER = "\ue004", "\ue007"
PERCENTS = "[...document.querySelectorAll('#bars li')].map(bar => parseFloat(bar.lastChild.textContent))"
# Notes the percentages whenever they change.
WATCH = f"""
window.states = [];
new MutationObserver(() => window.states.push({PERCENTS})).observe(
    document.querySelector('#bars'), {{ childList: true, subtree: true }});
"""


def enter_panel(browser):
    """Goes into the panel's frame, unless the page is the panel itself."""
    frames = "return [...document.querySelectorAll('iframe')].filter(frame => frame.title === 'Draw a digit')"
    there = "return document.querySelector('#drawing') ? [null] : " + frames.removeprefix("return ")
    frame = wait("the panel", lambda: browser.js(there), 120)[0]
    if frame:
        browser.call("POST", "/frame", id=frame)
    wait("the panel's script", lambda: browser.js("return !!document.querySelector('#bars li')"), 60)


def percents(browser):
    wait("the bars", lambda: browser.js("return !due"), 10)
    return browser.js(f"return {PERCENTS}")


def draw(browser, strokes, kind):
    """Draws, and returns the percentages that showed one after the other."""
    canvas = browser.find("#drawing")
    browser.js("arguments[0].scrollIntoView({block: 'center'}); window.states.length = 0", canvas)
    side = browser.js("return arguments[0].clientWidth", canvas)

    def move(point):
        x, y = (round((place - 0.5) * side) for place in point)
        return {"type": "pointerMove", "origin": canvas, "x": x, "y": y, "duration": 50}

    down, up = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
    actions = [action for first, *rest in strokes for action in [move(first), down, *map(move, rest), up]]
    pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions}
    browser.call("POST", "/actions", actions=[pointer])
    percents(browser)
    return browser.js("return window.states")


def clear_by_keyboard(browser):
    for _ in range(20):
        if browser.js("return document.activeElement.id") == "clear":
            break
        press(browser, TAB)
    press(browser, ENTER)
    return percents(browser)


def press(browser, key):
    actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
    browser.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])


def use(browser, kind, images, strokes):
    enter_panel(browser)
    browser.js(WATCH)
    draw(browser, strokes, kind)
    cleared = clear_by_keyboard(browser)
    states = draw(browser, strokes, kind)
    return {
        "probabilities": browser.js("return arguments[0].map(predict)", images),
        "cleared": cleared,
        "states": states,
        "answer": browser.js("return document.querySelector('#answer').textContent"),
        "drawing": browser.js("return Array.from(readDrawing().data)"),
        "image": browser.js("return Array.from(prepare(readDrawing()))"),
        "drawn": browser.js("return predict(prepare(readDrawing()))"),
        "overflow": browser.js("return document.documentElement.scrollWidth - document.documentElement.clientWidth"),
        "milliseconds": browser.js(
            "const start = performance.now(); for (let i = 0; i < 20; i++) show(); return (performance.now() - start) / 20"
        ),
    }


def main(place, screenshot, device):
    place = Path(place)
    request = json.load(sys.stdin)
    options, kind = ({"mobileEmulation": PHONE}, "touch") if device == "phone" else ({}, "mouse")
    with contextlib.ExitStack() as stack:
        address = place.as_uri()
        if place.suffix == ".ipynb":
            address = stack.enter_context(Lab(place.parent, Path(screenshot).with_suffix(".log"))).address(place.name)
        browser = stack.enter_context(Browser(screenshot, **options))
        browser.open(address)
        json.dump(use(browser, kind, **request), sys.stdout)


main(*sys.argv[1:])
