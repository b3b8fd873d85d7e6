"""A headless Chromium and JupyterLab to look at, for the scripts that go on from here.

Speaks WebDriver (https://www.w3.org/TR/webdriver2) with chromedriver, which is nothing more than JSON over HTTP.
"""

import atexit
import base64
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

IS_ROOT = os.geteuid() == 0
# How often a server is started that loses its port to another program while it starts.
STARTS = 10
# Seconds to wait for what takes a few on a machine that is not busy.
LIMIT = 300


def wait(what, check, limit):
    deadline = time.monotonic() + limit
    while not (result := check()):
        if time.monotonic() > deadline:
            sys.exit(f"waited {limit} s in vain for {what}")
        time.sleep(0.1)
    return result


def start_driver():
    """Starts chromedriver on a port of its own choice and returns the port.

    It chooses a port that is free for IPv4, then wants the same for IPv6, and ends where somebody
    else has that one.
    """
    for _ in range(STARTS):
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        atexit.register(driver.terminate)
        said = ""
        for line in driver.stdout:
            if started := re.search(r"successfully on port (\d+)", line):
                return int(started.group(1))
            said += line
    sys.exit(f"chromedriver ended {STARTS} times before it had a port, and said last:\n{said}")


class Browser:
    """A session of chromedriver, which leaves a screenshot in a file at its end."""

    def __init__(self, screenshot, **options):
        self.screenshot = Path(screenshot)
        self.address = f"http://127.0.0.1:{start_driver()}/session"
        arguments = ["--headless=new", "--window-size=1400,1600", "--disable-dev-shm-usage"]
        if IS_ROOT:
            arguments.append("--no-sandbox")  # Chromium refuses to start as root otherwise
        options = {"goog:chromeOptions": {"args": arguments, **options}}
        session = self.call("POST", "", capabilities={"alwaysMatch": options})
        self.address += "/" + session["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.screenshot.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))
        self.call("DELETE", "")

    def call(self, method, path, **body):
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
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


class Lab:
    """JupyterLab on the notebooks of a folder."""

    def __init__(self, folder, log):
        self.token = secrets.token_hex(16)
        for _ in range(STARTS):
            self.start(folder, log)
            wait("JupyterLab", lambda: self.answers() or self.server.poll() is not None, LIMIT)
            if self.server.poll() is None:
                return
            # It lets go of the port that it has found to be free before it takes it for good.
            if "no available port" not in Path(log).read_text():
                break
        sys.exit(f"JupyterLab does not start, see {log}")

    def start(self, folder, log):
        from jupyter_core.paths import jupyter_runtime_dir

        # Started as this program is, apart from what else the user has.
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
            # Whoever has taken the port away does not know the token.
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


