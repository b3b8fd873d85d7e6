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
# The canvas's middle in the window, which is what a finger meets: the panel may be in a frame.
MIDDLE = """
const area = arguments[0].getBoundingClientRect();
const middle = [area.x + area.width / 2, area.y + area.height / 2];
for (let page = window; page.frameElement; page = page.parent) {
    const frame = page.frameElement.getBoundingClientRect();
    middle[0] += frame.x;
    middle[1] += frame.y;
}
return middle;
"""


def enter_panel(browser):
    """Goes into the panel's frame, unless the page is the panel itself."""
    frames = "return [...document.querySelectorAll('iframe')].filter(frame => frame.title === 'Draw a digit')"
    there = "return document.querySelector('#drawing') ? [null] : " + frames.removeprefix("return ")
    frame = wait("the panel", lambda: browser.js(there), LIMIT)[0]
    if frame:
        browser.call("POST", "/frame", id=frame)
    bars = "return !!document.querySelector('#bars li')"
    wait("the panel's script", lambda: browser.js(bars), LIMIT)


def percents(browser):
    wait("the bars", lambda: browser.js("return !due"), LIMIT)
    return browser.js(f"return {PERCENTS}")


def mouse(browser, canvas, what, x, y):
    """Presses, moves or releases a button; places count from the canvas's middle, in pixels."""
    move = {"type": "pointerMove", "origin": canvas, "x": x, "y": y}
    press, release = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
    actions = {"press": [move, press], "move": [move], "release": [release]}[what]
    pointer = {"type": "pointer", "id": "mouse", "actions": actions}
    browser.call("POST", "/actions", actions=[pointer])


def touch(browser, canvas, what, x, y):
    """The same with a finger; chromedriver's own actions forget between calls that it is down."""
    left, top = browser.js(MIDDLE, canvas)
    kind = {"press": "touchStart", "move": "touchMove", "release": "touchEnd"}[what]
    points = [] if what == "release" else [{"x": left + x, "y": top + y}]
    event = {"type": kind, "touchPoints": points}
    browser.call("POST", "/goog/cdp/execute", cmd="Input.dispatchTouchEvent", params=event)


def draw(browser, strokes, pointer):
    """Draws, and returns the percentages that showed one after the other.

    Each point waits for the bars: a busy machine would show several of them in one frame.
    """
    canvas = browser.find("#drawing")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
    side = browser.js("return arguments[0].clientWidth", canvas)
    browser.js("window.states.length = 0")
    for stroke in strokes:
        places = [[round((place - 0.5) * side) for place in point] for point in stroke]
        for what, place in zip(["press"] + ["move"] * (len(places) - 1), places):
            pointer(browser, canvas, what, *place)
            percents(browser)
        if browser.js("return last === null"):
            sys.exit("the panel has not followed the pen")
        pointer(browser, canvas, "release", *places[-1])
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


def use(browser, pointer, images, strokes):
    enter_panel(browser)
    browser.js(WATCH)
    draw(browser, strokes, pointer)
    cleared = clear_by_keyboard(browser)
    states = draw(browser, strokes, pointer)
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
    options, pointer = ({"mobileEmulation": PHONE}, touch) if device == "phone" else ({}, mouse)
    with contextlib.ExitStack() as stack:
        address = place.as_uri()
        if place.suffix == ".ipynb":
            address = stack.enter_context(Lab(place.parent, Path(screenshot).with_suffix(".log"))).address(place.name)
        browser = stack.enter_context(Browser(screenshot, **options))
        browser.open(address)
        json.dump(use(browser, pointer, **request), sys.stdout)


main(*sys.argv[1:])
