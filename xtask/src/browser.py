"""Runs a notebook in JupyterLab by keyboard, for `xtask/src/browser.rs`; goes on from `webdriver.py`.

Arguments: the notebook, a file for a screenshot (the server's log goes beside it), then the beginnings of the titles of the figures to wait for.
Ends with status 0 once all of them are on the page, drawn.
"""

CELL_LIMIT = 900  # seconds
SHIFT, ENTER = "\ue008", "\ue007"

# Numbers of all cells and of running ones, what failed, and the titles of the figures that are drawn.
STATE = """
const texts = selector => [...document.querySelectorAll(selector)].map(node => node.textContent);
const figures = [...document.querySelectorAll('.jp-OutputArea-output img')].filter(img => img.naturalWidth > 0);
const svgs = figures.map(img => decodeURIComponent(img.src)).concat(
    [...document.querySelectorAll('.jp-OutputArea-output svg')].map(svg => svg.outerHTML));
return {
    cells: document.querySelectorAll('.jp-Notebook .jp-Cell').length,
    focused: !!document.activeElement.closest('.jp-Notebook'),
    idle: !!document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]'),
    running: texts('.jp-InputPrompt').filter(prompt => prompt.includes('*')).length,
    failures: texts('[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]'),
    titles: svgs.map(svg => (svg.match(/<title>([^<]*)/) || [])[1]).filter(title => title),
};
"""


def shift_enter(browser):
    keys = [("keyDown", SHIFT), ("keyDown", ENTER), ("keyUp", ENTER), ("keyUp", SHIFT)]
    actions = [{"type": kind, "value": key} for kind, key in keys]
    browser.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])


def run(browser, cells, wanted):
    def is_ready():
        state = browser.js(STATE)
        return state["cells"] == cells and state["focused"] and state["idle"]

    wait("the notebook with its kernel", is_ready, LIMIT)
    for _ in range(cells):
        shift_enter(browser)
        state = wait("a cell to end", lambda: not (s := browser.js(STATE))["running"] and s, CELL_LIMIT)
        if state["failures"]:
            sys.exit("a cell failed: " + "\n".join(state["failures"]))
        missing = [title for title in wanted if not any(shown.startswith(title) for shown in state["titles"])]
        if not missing:
            return
    sys.exit(f"not on the page: {', '.join(missing)}; shown: {', '.join(state['titles'])}")


def main(notebook, screenshot, *wanted):
    notebook = Path(notebook)
    log = Path(screenshot).with_suffix(".log")
    with Lab(notebook.parent, log) as lab, Browser(screenshot) as browser:
        browser.open(lab.address(notebook.name))
        run(browser, len(json.loads(notebook.read_text())["cells"]), wanted)


main(*sys.argv[1:])
