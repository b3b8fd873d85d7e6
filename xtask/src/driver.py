"""Runs code in a Jupyter kernel, for `xtask/src/kernel.rs`.

Arguments: kernel name, working folder. Reads requests from standard input, one per line:
`{"code": "...", "limit": seconds or null}`. Writes lines to standard output: `{"ready": true}` at
the start, then for each request any number of `{"output": <nbformat output>}` and one
`{"done": "idle" | "dead" | "time limit"}`. The kernel stops at the end of standard input.
"""

import json
import queue
import signal
import sys
import threading
import time

from jupyter_client.manager import KernelManager
from nbformat.v4 import output_from_msg

START_LIMIT = 180  # seconds
STARTS = 3
# How long to wait for more output after a cell: the kernel passes on standard error in a separate
# thread, so lines may follow the "idle" that ends the cell.
GRACE_PERIOD = 0.05  # seconds


def emit(**event):
    print(json.dumps(event), flush=True)


def read_requests(requests):
    try:
        for line in sys.stdin.buffer:  # UTF-8 in any locale
            requests.put(json.loads(line))
    finally:  # stop the kernel after invalid input, too
        requests.put(None)


def execute(manager, client, code, limit, requests):
    message_id = client.execute(code, allow_stdin=False, stop_on_error=False)
    deadline = None if limit is None else time.monotonic() + limit
    idle = False
    while True:
        try:
            message = client.get_iopub_msg(timeout=GRACE_PERIOD if idle else 0.5)
        except queue.Empty:
            if idle:
                return "idle"
            message = None
        if message is not None:
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "status":
                ours = message["parent_header"].get("msg_id") == message_id
                idle = idle or (ours and content["execution_state"] == "idle")
            elif kind in ("stream", "display_data", "execute_result", "error"):
                emit(output=output_from_msg(message))
        elif not manager.is_alive():
            return "dead"
        if deadline is not None and time.monotonic() > deadline:
            return "time limit"
        if not requests.empty():  # during a request, this can only be the end of the input
            return "dead"


def start(name, folder):
    # Kernels that start at the same time may get the same port, and then one of them never answers.
    for attempt in range(STARTS):
        manager = KernelManager(kernel_name=name)
        manager.start_kernel(cwd=folder, stdout=sys.stderr)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=START_LIMIT)
            return manager, client
        except BaseException as error:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            if attempt == STARTS - 1 or not isinstance(error, RuntimeError):
                raise


def main():
    # Ctrl+C, `timeout` and the end of a terminal signal the whole process group. The signal ends
    # xtask, and with it standard input: this program stays until it has stopped the kernel. It does
    # not ignore the signals, because the kernel would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    requests = queue.Queue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
    manager, client = start(sys.argv[1], sys.argv[2])
    finished = False
    try:
        emit(ready=True)
        while (request := requests.get()) is not None:
            result = execute(manager, client, request["code"], request["limit"], requests)
            emit(done=result)
            if result != "idle":
                return
        finished = True
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=not finished)


main()
