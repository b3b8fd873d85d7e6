"""Runs code in a Jupyter kernel, for `xtask/src/kernel.rs`.

Arguments: kernel name, working folder. Reads one request a line from standard input,
`{"code": "...", "limit": seconds or null}`, and answers in lines on standard output: `{"ready": true}` once at the start,
then for each request any number of `{"output": <nbformat output>}` and one
`{"done": "idle" | "dead" | "time limit"}`. The end of standard input ends the kernel.
"""

import json
import queue
import sys
import threading
import time

from jupyter_client.manager import KernelManager
from nbformat.v4 import output_from_msg

START_LIMIT = 180  # seconds
STARTS = 3
# The kernel passes its standard error on in a thread of its own: lines may follow the "idle" that ends a cell.
AFTERMATH = 0.05  # seconds


def emit(**event):
    print(json.dumps(event), flush=True)


def read_requests(requests):
    try:
        for line in sys.stdin.buffer:  # UTF-8 in any locale
            requests.put(json.loads(line))
    finally:  # what cannot be read ends the kernel, too: nothing else would
        requests.put(None)


def execute(manager, client, code, limit, requests):
    message_id = client.execute(code, allow_stdin=False, stop_on_error=False)
    deadline = None if limit is None else time.monotonic() + limit
    idle = False
    while True:
        try:
            message = client.get_iopub_msg(timeout=AFTERMATH if idle else 0.5)
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
        if not requests.empty():  # only the end of the input comes while a request is under way
            return "dead"


def start(name, folder):
    # Two kernels that start at once may be given the same port: then one of them never answers.
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
