"""Runs a notebook in JupyterLab by keyboard, in a headless Chromium, for `xtask/src/browser.rs`.

Arguments: the notebook, a file for a screenshot (the server's log goes beside it), then the beginnings of the titles of the figures to wait for.
Ends with status 0 once all of them are on the page, drawn. Speaks WebDriver (https://www.w3.org/TR/webdriver2) with
chromedriver, which is nothing more than JSON over HTTP.
"""

import base64
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from jupyter_core.paths import jupyter_runtime_dir

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


def wait(what, check, limit):
    deadline = time.monotonic() + limit
    while not (result := check()):
        if time.monotonic() > deadline:
            sys.exit(f"waited {limit} s in vain for {what}")
        time.sleep(0.2)
    return result


class Browser:
    """A session of chromedriver."""

    def __init__(self, driver):
        port = next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in driver.stdout))).group(1)
        self.address = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless=new", "--window-size=1400,1600", "--disable-dev-shm-usage"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium refuses to start as root otherwise
        options = {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}
        session = self.call("POST", "", capabilities=options)
        self.address += "/" + session["sessionId"]

    def call(self, method, path, **body):
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            sys.exit(f"chromedriver: {json.load(error)['value']['message']}")

    def state(self):
        return self.call("POST", "/execute/sync", script=STATE, args=[])

    def shift_enter(self):
        keys = [("keyDown", SHIFT), ("keyDown", ENTER), ("keyUp", ENTER), ("keyUp", SHIFT)]
        actions = [{"type": kind, "value": key} for kind, key in keys]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])


def run(browser, cells, wanted):
    def is_ready():
        state = browser.state()
        return state["cells"] == cells and state["focused"] and state["idle"]

    wait("the notebook with its kernel", is_ready, 180)
    for _ in range(cells):
        browser.shift_enter()
        state = wait("a cell to end", lambda: not (s := browser.state())["running"] and s, CELL_LIMIT)
        if state["failures"]:
            sys.exit("a cell failed: " + "\n".join(state["failures"]))
        missing = [title for title in wanted if not any(shown.startswith(title) for shown in state["titles"])]
        if not missing:
            return
    sys.exit(f"not on the page: {', '.join(missing)}; shown: {', '.join(state['titles'])}")


def main(notebook, screenshot, *wanted):
    notebook = Path(notebook)
    token = secrets.token_hex(16)
    lab = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    lab += [f"--ServerApp.root_dir={notebook.parent}", f"--IdentityProvider.token={token}"]
    if os.geteuid() == 0:
        lab.append("--allow-root")
    with (
        open(Path(screenshot).with_suffix(".log"), "w") as log,
        subprocess.Popen(lab, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as server,
        subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver,
    ):
        browser = None
        try:
            record = Path(jupyter_runtime_dir(), f"jpserver-{server.pid}.json")
            wait("JupyterLab", lambda: record.exists() and record.read_text(), 60)
            port = json.loads(record.read_text())["port"]
            browser = Browser(driver)
            browser.call("POST", "/url", url=f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?token={token}")
            run(browser, len(json.loads(notebook.read_text())["cells"]), wanted)
        finally:
            if browser:
                Path(screenshot).write_bytes(base64.b64decode(browser.call("GET", "/screenshot")))
                browser.call("DELETE", "")
            driver.terminate()
            server.terminate()


main(*sys.argv[1:])
