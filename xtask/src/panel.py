"""Uses the draw-a-digit panel like a reader, for `xtask/src/browser.rs`.

Appended to `webdriver.py`. Arguments: the page or notebook with the panel (a notebook is opened in
JupyterLab); a file for a screenshot; "desktop" (with a mouse) or "phone" (360 pixels wide, with
touch).
Reads {"images": [[pixel, …], …], "strokes": [[[x, y], …], …]} from standard input, with coordinates
from 0 to 1, and writes the panel's results to standard output as JSON.
"""

TAB, ENTER, SHIFT, DOWN = "\ue004", "\ue007", "\ue008", "\ue015"
BARS = "[...document.querySelectorAll('#bars li')]"
PERCENTS = f"{BARS}.map(bar => parseFloat(bar.lastChild.textContent))"
# Records the percentages whenever they change.
WATCH = f"""
window.states = [];
new MutationObserver(() => window.states.push({PERCENTS})).observe(
    document.querySelector('#bars'), {{ childList: true, subtree: true }});
"""
# The center of the canvas in window coordinates, which touch events need: the panel may be in a
# frame.
CENTER = """
const area = arguments[0].getBoundingClientRect();
const center = [area.x + area.width / 2, area.y + area.height / 2];
for (let page = window; page.frameElement; page = page.parent) {
    const frame = page.frameElement.getBoundingClientRect();
    center[0] += frame.x;
    center[1] += frame.y;
}
return center;
"""
# The panel's frames, or [null] if the page is the panel itself.
FRAMES = """
const frames = [...document.querySelectorAll('iframe')];
return document.querySelector('#drawing')
    ? [null] : frames.filter(frame => frame.title === 'Draw a digit');
"""
# The panel shows a change in the next frame, before what asks for that frame later.
NEXT_FRAME = "requestAnimationFrame(() => arguments[0]())"
INK = "return drawing.read().data.reduce((sum, value) => sum + value)"
THEME = "parent.document.body.dataset.jpThemeLight"
ANSWER = "return document.querySelector('#answer').textContent"
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"
# Milliseconds per update of the bars.
TIMING = """
const start = performance.now();
for (let i = 0; i < 20; i++) show();
return (performance.now() - start) / 20;
"""


def enter_panel(browser):
    """Enters the panel's frame, unless the page is the panel itself."""
    frame = wait("the panel", lambda: browser.js(FRAMES), LIMIT)[0]
    if frame:
        browser.call("POST", "/frame", id=frame)
    wait("the panel's script", lambda: browser.js(f"return {BARS}.length > 0"), LIMIT)


def percents(browser):
    browser.call("POST", "/execute/async", script=NEXT_FRAME, args=[])
    return browser.js(f"return {PERCENTS}")


def mouse(browser, canvas, action, x, y):
    """Presses, moves or releases the mouse at a point in pixels from the center of the canvas."""
    move = {"type": "pointerMove", "origin": canvas, "x": x, "y": y}
    press, release = {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}
    actions = {"press": [move, press], "move": [move], "release": [release]}[action]
    pointer = {"type": "pointer", "id": "mouse", "actions": actions}
    browser.call("POST", "/actions", actions=[pointer])


def touch(browser, canvas, action, x, y):
    """The same with touch events. chromedriver's actions lose the touch between calls."""
    left, top = browser.js(CENTER, canvas)
    kind = {"press": "touchStart", "move": "touchMove", "release": "touchEnd"}[action]
    points = [] if action == "release" else [{"x": left + x, "y": top + y}]
    event = {"type": kind, "touchPoints": points}
    browser.call("POST", "/goog/cdp/execute", cmd="Input.dispatchTouchEvent", params=event)


def draw(browser, strokes, pointer):
    """Draws and returns the successive percentages.

    Waits for the bars after each point: a busy machine may show several points in one frame.
    """
    canvas = browser.find("#drawing")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
    side = browser.js("return arguments[0].clientWidth", canvas)
    browser.js("window.states.length = 0")
    for stroke in strokes:
        before = browser.js(INK)
        points = [[round((value - 0.5) * side) for value in point] for point in stroke]
        for action, point in zip(["press"] + ["move"] * (len(points) - 1), points):
            pointer(browser, canvas, action, *point)
            percents(browser)
        pointer(browser, canvas, "release", *points[-1])
        if browser.js(INK) <= before:
            sys.exit("the panel did not follow the pointer")
    return browser.js("return window.states")


def clear_by_keyboard(browser):
    # Touch events do not move the focus here as a finger would: the page has it, with its own stops.
    browser.js("window.focus()")
    for _ in range(20):
        if browser.js("return document.activeElement.id") == "clear":
            press(browser, ENTER)
            return percents(browser)
        press(browser, TAB)
    sys.exit("the button cannot be reached with the keyboard")


def draw_one_by_keyboard(browser):
    """Draws a vertical line with the arrow keys. Returns the answer."""
    browser.js("drawing.clear()")
    browser.js("document.querySelector('#drawing').focus()")
    down = [{"type": kind, "value": DOWN} for kind in ["keyDown", "keyUp"]]
    shift = [{"type": kind, "value": SHIFT} for kind in ["keyDown", "keyUp"]]
    browser.press_keys([shift[0]] + 14 * down + [shift[1]])
    percents(browser)
    return browser.js(ANSWER)


def press(browser, key):
    browser.press_keys([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}])


def backgrounds(browser):
    """The panel's background as it is, and in a light and a dark theme of the notebook around it."""
    found = [browser.js(BACKGROUND)]
    if browser.js("return frameElement !== null"):
        before = browser.js(f"return {THEME}")
        for is_light in ["true", "false"]:
            browser.js(f"{THEME} = arguments[0]", is_light)
            found.append(browser.js(BACKGROUND))
        browser.js(f"{THEME} = arguments[0]", before)
    return found


def use_panel(browser, pointer, images, strokes):
    enter_panel(browser)
    browser.js(WATCH)
    draw(browser, strokes, pointer)
    cleared = clear_by_keyboard(browser)
    states = draw(browser, strokes, pointer)
    return {
        "probabilities": browser.js("return arguments[0].map(predict)", images),
        "cleared": cleared,
        "states": states,
        "answer": browser.js(ANSWER),
        "drawing": browser.js("return Array.from(drawing.read().data)"),
        "image": browser.js("return Array.from(prepare(drawing.read()))"),
        "drawn": browser.js("return predict(prepare(drawing.read()))"),
        "overflow": browser.js(OVERFLOW),
        "backgrounds": backgrounds(browser),
        "milliseconds": browser.js(TIMING),
        "by_keyboard": draw_one_by_keyboard(browser),
    }


def main(place, screenshot, device):
    place = Path(place)
    request = json.load(sys.stdin)
    options, pointer = ({"mobileEmulation": PHONE}, touch) if device == "phone" else ({}, mouse)
    with contextlib.ExitStack() as stack:
        address = place.as_uri()
        if place.suffix == ".ipynb":
            log = Path(screenshot).with_suffix(".log")
            address = stack.enter_context(Lab(place.parent, log)).address(place.name)
        browser = stack.enter_context(Browser(screenshot, **options))
        browser.open(address)
        json.dump(use_panel(browser, pointer, **request), sys.stdout)


main(*sys.argv[1:])
