"""Processes that a test starts, and what they use, read from /proc."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

# Seconds that a process gets to start, and to end once it is told to.
PATIENCE = 30
TICKS = os.sysconf("SC_CLK_TCK")


def free_ports(count):
    """So many ports of the loopback address that nobody listens on, no two of them the same."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def free_port():
    """One of them."""
    return free_ports(1)[0]


def within(seconds, attempt, process=None):
    """What `attempt` gives once it does not fail; while it does, `process` has to live."""
    end = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > end or (process and process.poll() is not None):
                raise
            time.sleep(0.01)


def await_port(port, process=None, seconds=PATIENCE):
    """Returns once somebody listens there."""
    within(seconds, lambda: socket.create_connection(("127.0.0.1", port), 1).close(), process)


def cores():
    """The core that a gateway gets for itself, and those of everybody else; None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return ({allowed[0]}, set(allowed[1:])) if len(allowed) > 1 else (None, None)


class Started:
    """A process with its descendants; they are ended with the block, by their ids and no others."""

    def __init__(self, command, core=None, log=None, **how):
        out = open(log, "ab") if log else subprocess.DEVNULL
        self.log = log
        how = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, **how}
        # Before the program runs, so that its threads inherit it.
        pinned = (lambda: os.sched_setaffinity(0, core)) if core else None
        self.process = subprocess.Popen([str(word) for word in command], preexec_fn=pinned, **how)
        self.pid = self.process.pid
        if log:
            out.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def said(self, most=1500):
        """The end of what it wrote to its log."""
        return pathlib.Path(self.log).read_text(errors="replace")[-most:] if self.log else ""

    def stop(self):
        family = [(pid, begun(pid)) for pid in descendants(self.pid)]
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE / 6)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid, birth in family:
            # Another process may have its number by now.
            if birth is not None and begun(pid) == birth:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def stat(pid):
    """The fields of /proc/PID/stat after the name, the state first; None once the process is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None


def begun(pid):
    """When the process began, in clock ticks since boot; None once it has ended."""
    fields = stat(pid)
    return fields[19] if fields and fields[0] != "Z" else None


def descendants(pid):
    """The ids of the process's children, of theirs, and so on."""
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if fields := stat(entry):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = list(children.get(pid, []))
    for one in found:
        found.extend(children.get(one, []))
    return found


def cpu_seconds(pid):
    """CPU time of a process and its descendants: by the scheduler's nanoseconds, or, if threads ended meanwhile and
    took theirs along, by the kernel's ticks."""
    nanoseconds = ticks = 0
    for one in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError, TypeError, ValueError):
            ticks += sum(map(int, stat(one)[11:13]))
            for thread in os.listdir(f"/proc/{one}/task"):
                nanoseconds += int(pathlib.Path(f"/proc/{one}/task/{thread}/schedstat").read_text().split()[0])
    exact, coarse = nanoseconds / 1e9, ticks / TICKS
    return coarse if coarse > exact + 5 / TICKS else exact


def memory_kib(pid):
    """Proportional set size of a process and its descendants, in KiB."""
    total = 0
    for one in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError, TypeError):
            rollup = pathlib.Path(f"/proc/{one}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1])
    return total


def descriptors(pid):
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid):
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))
