"""Starts JupyterLab, for `cargo xtask lab`.

JupyterLab stops its kernels when it gets SIGTERM, but not when it gets SIGHUP, the end of the
terminal.
"""

import signal

from jupyterlab.labapp import main

if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
main()
