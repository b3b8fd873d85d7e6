"""Controls headless Chromium and JupyterLab. The other scripts are appended to this one.

Uses WebDriver (https://www.w3.org/TR/webdriver2), which is JSON over HTTP, with chromedriver.
"""

import atexit
import base64
import contextlib
import functools
import http.server
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median

IS_ROOT = os.geteuid() == 0
# How often to retry a server that loses its port to another program while it starts.
STARTS = 10
# Long enough for a busy machine.
LIMIT = 300  # seconds
PHONE = {"deviceMetrics": {"width": 360, "height": 760, "pixelRatio": 2, "touch": True}}
# How many pixels a page is wider than its window.
OVERFLOW = """
const page = document.documentElement;
return page.scrollWidth - page.clientWidth;
"""


def wait(what, check, limit):
    deadline = time.monotonic() + limit
    while not (result := check()):
        if time.monotonic() > deadline:
            sys.exit(f"timed out after {limit} s waiting for {what}")
        time.sleep(0.1)
    return result


def start_driver():
    """Starts chromedriver on a free port and returns the port.

    chromedriver chooses a port that is free for IPv4 and exits if it is in use for IPv6.
    """
    for _ in range(STARTS):
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        atexit.register(driver.terminate)
        output = ""
        for line in driver.stdout:
            if started := re.search(r"successfully on port (\d+)", line):
                return int(started.group(1))
            output += line
    sys.exit(f"chromedriver failed to start {STARTS} times; its last output:\n{output}")


class Browser:
    """A chromedriver session, which saves a screenshot when it ends."""

    def __init__(self, screenshot, capabilities={}, **options):
        self.screenshot = Path(screenshot)
        self.address = f"http://127.0.0.1:{start_driver()}/session"
        arguments = ["--headless=new", "--window-size=1400,1600", "--disable-dev-shm-usage"]
        if IS_ROOT:
            arguments.append("--no-sandbox")  # required to run Chromium as root
        options = {"goog:chromeOptions": {"args": arguments, **options}, **capabilities}
        session = self.call("POST", "", capabilities={"alwaysMatch": options})
        self.address += "/" + session["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.screenshot.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))
        self.call("DELETE", "")

    def call(self, method, path, **body):
        data = json.dumps(body).encode() if method == "POST" else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            sys.exit(f"chromedriver: {json.load(error)['value']['message']}")

    def open(self, url):
        self.call("POST", "/url", url=url)

    def js(self, script, *args):
        return self.call("POST", "/execute/sync", script=script, args=args)

    def find(self, selector):
        return self.call("POST", "/element", using="css selector", value=selector)

    def press_keys(self, actions):
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        self.call("POST", "/actions", actions=[keyboard])


class Lab:
    """A JupyterLab server for a folder of notebooks."""

    def __init__(self, folder, log):
        self.token = secrets.token_hex(16)
        for _ in range(STARTS):
            self.start(folder, log)
            wait("JupyterLab", lambda: self.answers() or self.server.poll() is not None, LIMIT)
            if self.server.poll() is None:
                return
            # It finds a free port, releases it, and then binds it: another program may be faster.
            if "no available port" not in Path(log).read_text():
                break
        sys.exit(f"JupyterLab does not start: see {log}")

    def start(self, folder, log):
        from jupyter_core.paths import jupyter_runtime_dir

        # Isolated from the user's settings, like this program.
        lab = [sys.executable, "-I", "-X", "utf8", "-m", "jupyterlab"]
        lab += ["--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
        lab += [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={self.token}"]
        if IS_ROOT:
            lab.append("--allow-root")
        with open(log, "w") as log:
            self.server = subprocess.Popen(lab, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        atexit.register(self.server.terminate)
        self.record = Path(jupyter_runtime_dir(), f"jpserver-{self.server.pid}.json")

    def answers(self):
        try:
            self.port = json.loads(self.record.read_text())["port"]
            # The token tells our server from another one on the same port.
            status = f"http://127.0.0.1:{self.port}/api/status?token={self.token}"
            with urllib.request.urlopen(status, timeout=LIMIT):
                return True
        except (OSError, ValueError):
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.terminate()

    def address(self, notebook):
        return f"http://127.0.0.1:{self.port}/lab/tree/{notebook}?token={self.token}"


@contextlib.contextmanager
def served(folder, is_isolated=False):
    """The address of a server for a folder, which may isolate its pages, so that they can use
    threads."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {
            ".html": "text/html", ".css": "text/css", ".js": "text/javascript",
            ".svg": "image/svg+xml", ".wasm": "application/wasm",
            "": "application/octet-stream",
        }

        def end_headers(self):
            if is_isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()

