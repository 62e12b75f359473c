"""A Tollhouse that is reloaded, upgraded and watched while it serves."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request

from . import Failed, tollhouse
from .gateways import Tollhouse
from .process import PATIENCE, begun, descriptors, memory_kib, threads


class Live(Tollhouse):
    """As it is run: as many threads as cores, and no core of its own."""

    threads = "auto"

    def __init__(self, origin, **more):
        self.generation = 0
        super().__init__(origin, **more)
        #: Each process so far and when it began, the current one last.
        self.processes = [(self.pid, begun(self.pid))]

    def upgrade(self):
        """Replaces the process, and says how many seconds that took."""
        began = time.monotonic()
        command = [str(word) for word in (tollhouse(), "upgrade", "--socket", self.socket, "--output", "json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE)
        if done.returncode != 0:
            raise Failed(f"an upgrade failed: {done.stdout}{done.stderr}{self.started.said()}")
        self.pid = json.loads(done.stdout)["new"]
        self.processes.append((self.pid, begun(self.pid)))
        return time.monotonic() - began

    def reload(self):
        """Changes the document, and says after how many seconds requests saw it."""
        began, self.generation = time.monotonic(), self.generation + 1
        document, new = self.folder / "tollhouse.yaml", self.folder / "new"
        old, now = (f'x-generation: "{number}"' for number in (self.generation - 1, self.generation))
        new.write_text(document.read_text().replace(old, now))
        new.rename(document)
        while time.monotonic() < began + PATIENCE:
            with urllib.request.urlopen(self.url("/filters/1k"), timeout=PATIENCE) as answer:
                if answer.headers["x-generation"] == str(self.generation):
                    return time.monotonic() - began
            time.sleep(0.02)
        raise Failed(f"a changed document was not put to use: {self.started.said()}")

    def alive(self):
        """The processes that have not ended."""
        return [pid for pid, birth in self.processes if birth is not None and begun(pid) == birth]

    def panicked(self):
        """Whether the log tells of a panic."""
        return "panicked at" in (self.folder / "log").read_text(errors="replace")

    def __exit__(self, *error):
        for pid in self.alive():
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while any(pid != self.started.pid for pid in self.alive()) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in self.alive():
            if pid != self.started.pid:
                os.kill(pid, signal.SIGKILL)
        super().__exit__(*error)


class Watch:
    """Looks once a second at what the current process uses, until the block ends."""

    def __init__(self, live):
        self.live, self.samples = live, []
        self.stop, self.began = threading.Event(), time.monotonic()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self):
        while not self.stop.wait(1):
            try:
                pid = self.live.pid
                found = {"memory_kib": memory_kib(pid), "descriptors": descriptors(pid), "threads": threads(pid)}
            except OSError:
                continue  # it ended just now: the next one is looked at
            self.samples.append({"second": self.now(), "pid": pid, **found})

    def now(self):
        return time.monotonic() - self.began

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
