"""What the load tests share: where things are, processes, gateways, load and charts. See ../README.md."""

import os
import pathlib
import signal
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tollhouse"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or CACHE / "target")
# Python packages that tests/setup.sh installs.
PYTHON = CACHE / "python" / "bin" / "python"


class Failed(Exception):
    """Something did not do what it should; the measurement it was for is lost, others may go on."""


def die(message):
    """Ends the program because of something that its user can mend, or of what it was to find."""
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {message}")


def end_on_signals():
    """Has a signal end the program as an error does, so that what was started is stopped on the way out."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(128 + number))


def tollhouse():
    """The program to measure: $TOLLHOUSE, or the optimised build."""
    binary = pathlib.Path(os.environ.get("TOLLHOUSE") or TARGET / "release" / "tollhouse")
    if not binary.exists():
        die(f"{binary} is missing: cargo build --locked --release, or say TOLLHOUSE=...")
    return binary
