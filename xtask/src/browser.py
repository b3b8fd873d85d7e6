"""Runs a notebook in JupyterLab by keyboard, for `xtask/src/browser.rs`.

Appended to `webdriver.py`. Arguments: the notebook, a file for a screenshot (the server's log goes
beside it), and the figures to wait for, each by the beginning of its title. Exits with status 0
once the page shows all of them.
"""

CELL_LIMIT = 900  # seconds
# How long to wait for a kernel to be shown as idle, in seconds. On a busy machine JupyterLab may
# miss its first status; it then shows "Unknown" until a cell runs, and cells run all the same.
IDLE_LIMIT = 60
SHIFT, ENTER = "\ue008", "\ue007"

# The number of cells, whether the notebook is ready, the number of running cells, failures, and the
# titles of the figures shown.
STATE = """
const all = selector => [...document.querySelectorAll(selector)];
const texts = selector => all(selector).map(node => node.textContent);
const mimes = types => types.map(type => `[data-mime-type="application/vnd.jupyter.${type}"]`);
const figures = all('.jp-OutputArea-output img').filter(img => img.naturalWidth > 0);
const svgs = figures.map(img => decodeURIComponent(img.src)).concat(
    all('.jp-OutputArea-output svg').map(svg => svg.outerHTML));
return {
    cells: document.querySelectorAll('.jp-Notebook .jp-Cell').length,
    focused: !!document.activeElement.closest('.jp-Notebook'),
    idle: !!document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]'),
    running: texts('.jp-InputPrompt').filter(prompt => prompt.includes('*')).length,
    failures: texts(mimes(['stderr', 'error']).join(', ')),
    titles: svgs.map(svg => (svg.match(/<title>([^<]*)/) || [])[1]).filter(title => title),
};
"""


def shift_enter(browser):
    keys = [("keyDown", SHIFT), ("keyDown", ENTER), ("keyUp", ENTER), ("keyUp", SHIFT)]
    browser.press_keys([{"type": kind, "value": key} for kind, key in keys])


def run(browser, cells, wanted):
    patience = time.monotonic() + IDLE_LIMIT

    def is_ready():
        state = browser.js(STATE)
        is_idle = state["idle"] or time.monotonic() > patience
        return state["cells"] == cells and state["focused"] and is_idle

    def state_when_idle():
        state = browser.js(STATE)
        return None if state["running"] else state

    wait("the notebook with its kernel", is_ready, LIMIT)
    for _ in range(cells):
        shift_enter(browser)
        state = wait("a cell to end", state_when_idle, CELL_LIMIT)
        if state["failures"]:
            sys.exit("a cell failed: " + "\n".join(state["failures"]))
        titles = state["titles"]
        missing = [want for want in wanted if not any(it.startswith(want) for it in titles)]
        if not missing:
            return
    sys.exit(f"not on the page: {', '.join(missing)}; shown: {', '.join(titles)}")


def main(notebook, screenshot, *wanted):
    notebook = Path(notebook)
    log = Path(screenshot).with_suffix(".log")
    with Lab(notebook.parent, log) as lab, Browser(screenshot) as browser:
        browser.open(lab.address(notebook.name))
        run(browser, len(json.loads(notebook.read_text())["cells"]), wanted)


main(*sys.argv[1:])
