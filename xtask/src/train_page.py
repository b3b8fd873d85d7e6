"""Uses the training page like a visitor, for `xtask/src/browser.rs`.

Appended to `webdriver.py`. Arguments: the page's folder; a file for a screenshot; the query of the
page's address; "isolated" for a server that isolates the page, which may then use threads, or
"plain"; "epoch" to train one, or "steps" for the first ten. Writes what it found to standard output
as JSON.
"""

# The strokes of a seven, from 0 (left, top) to 1.
SEVEN = [[0.25, 0.2], [0.5, 0.2], [0.75, 0.2], [0.65, 0.4], [0.55, 0.6], [0.45, 0.85]]
STEPS = 10
# Enough for a busy machine without SIMD.
EPOCH_LIMIT = 1200  # seconds
# Collects the losses that the worker reports, and when.
WATCH = """
window.losses = [];
window.reports = [];
const Original = window.Worker;
window.Worker = class extends Original {
    constructor(...options) {
        super(...options);
        this.addEventListener('message', ({ data }) => {
            if (!data.losses) return;
            window.losses.push(...data.losses);
            window.reports.push([performance.now() / 1000, window.losses.length]);
        });
    }
};
"""


def text(browser, name):
    return browser.js("return document.getElementById(arguments[0]).textContent", name)


def click(browser, name):
    browser.call("POST", f"/element/{element_id(browser, name)}/click")


def element_id(browser, name):
    return next(iter(browser.find(f"#{name}").values()))


def watch_losses(browser):
    script = {"source": WATCH}
    browser.call("POST", "/goog/cdp/execute", cmd="Page.addScriptToEvaluateOnNewDocument",
                 params=script)


def draw_seven(browser):
    canvas = browser.find("#drawing")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
    side = browser.js("return arguments[0].clientWidth", canvas)
    points = [[round((value - 0.5) * side) for value in point] for point in SEVEN]
    move = lambda x, y: {"type": "pointerMove", "duration": 0, "origin": canvas, "x": x, "y": y}
    actions = [move(*points[0]), {"type": "pointerDown", "button": 0}]
    actions += [move(*point) for point in points[1:]] + [{"type": "pointerUp", "button": 0}]
    mouse = {"type": "pointer", "id": "mouse", "actions": actions}
    browser.call("POST", "/actions", actions=[mouse])
    wait("an answer", lambda: "looks like" in text(browser, "answer"), LIMIT)
    return text(browser, "answer")


def console(browser):
    """The errors and warnings of the page since the last call."""
    return [entry["message"] for entry in browser.call("POST", "/se/log", type="browser")]


def train_steps(browser):
    """Trains for some steps and pauses. Returns the first losses."""
    click(browser, "go")
    losses = "return window.losses"
    wait("steps", lambda: len(browser.js(losses)) >= STEPS or problem(browser), LIMIT)
    click(browser, "go")
    wait("the pause", lambda: text(browser, "go") == "Go on", LIMIT)
    paused = browser.js(losses)
    click(browser, "clear")
    wait("the empty area", lambda: text(browser, "answer") == "Draw a digit.", LIMIT)
    draw_seven(browser)
    if browser.js(losses) != paused:
        sys.exit("training goes on while it is paused")
    return paused[:STEPS]


def problem(browser):
    if browser.js("return document.getElementById('status').className") == "problem":
        sys.exit(text(browser, "status"))


def train_epoch(browser):
    """Goes on to the end of the epoch. Returns what the page then shows, also after it was loaded
    again."""
    paused = len(browser.js("return window.losses"))
    click(browser, "go")
    ended = lambda: "Epoch 1:" in text(browser, "status")
    wait("an epoch", lambda: ended() or problem(browser), EPOCH_LIMIT)
    shown = f"{text(browser, 'status')} {speed(browser, paused)}"
    save(browser, "epoch")
    browser.open(browser.js("return location.href"))
    wait("the kept run", lambda: "is back" in text(browser, "status"), LIMIT)
    kept = [text(browser, name) for name in ["status", "accuracy", "source", "go"]]
    return {"shown": shown, "kept": kept, "answer": draw_seven(browser)}


def speed(browser, paused):
    """How long steps took after the first ones, which end with a pause."""
    reports = [report for report in browser.js("return window.reports") if report[1] >= paused]
    pairs = list(zip(reports[1:], reports[2:]))
    steps = [(end - start) / (after - before) for (start, before), (end, after) in pairs]
    (start, before), (end, after) = reports[1], reports[-1]
    return f"{after - before} steps in {end - start:.1f} s, median {1000 * median(steps):.1f} ms."


def save(browser, name):
    picture = base64.b64decode(browser.call("GET", "/screenshot"))
    browser.screenshot.with_stem(f"{browser.screenshot.stem} {name}").write_bytes(picture)


def main(folder, screenshot, query, isolation, extent):
    options = {"goog:loggingPrefs": {"browser": "WARNING"}}
    with served(folder, isolation == "isolated") as server:
        address = f"{server}/index.html{query}"
        with Browser(screenshot, capabilities=options) as browser:
            watch_losses(browser)
            browser.open(address)
            found = {"answer": draw_seven(browser), "losses": train_steps(browser)}
            found["kind"] = text(browser, "kind")
            if extent == "epoch":
                found["epoch"] = train_epoch(browser)
            found["console"] = console(browser)
        with Browser(screenshot, mobileEmulation=PHONE) as browser:
            browser.open(address)
            wait("the network", lambda: "Draw" in text(browser, "answer"), LIMIT)
            found["overflow"] = browser.js(OVERFLOW)
    json.dump(found, sys.stdout)


main(*sys.argv[1:])
