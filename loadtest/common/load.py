"""What is sent, each answer checked: requests by oha, handshakes by openssl, idle connections by ourselves."""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import socket
import ssl
import subprocess
import tempfile
import time

from . import Failed, die
from .gateways import CONSUMERS, token
from .process import PATIENCE, cpu_seconds, memory_kib

SIZES = {"1k": 1 << 10, "100k": 100 << 10, "100m": 100 << 20}


def find_oha():
    """Where oha is."""
    return shutil.which("oha", path=f"{os.environ['PATH']}:{pathlib.Path.home()}/.cargo/bin") or die(
        "oha is missing: tests/setup.sh load")


class Oha:
    """Requests by oha for some seconds, or so many of them; several at once where each brings a field of its own."""

    def __init__(self, path, *arguments, connections=64, number=None, tls=False, body=None, fields=()):
        self.path, self.tls, self.body, self.fields = path, tls, body, fields
        self.arguments, self.connections, self.number = arguments, connections, number

    def command(self, gateway, seconds, body):
        many = ["-n", self.number] if self.number else ["-z", f"{max(round(seconds * 1000), 200)}ms", "--wait-ongoing-requests-after-deadline"]
        command = [find_oha(), "--no-tui", "--output-format", "json", "--disable-compression", *many, *self.arguments]
        if self.tls:
            command.append("--insecure")
        if self.body:
            command += ["-m", "POST", "-D", body]
        url = gateway.url(self.path, self.tls)
        return [str(word) for word in [*command, "-c", self.connections // max(len(self.fields), 1), url]]

    def send(self, gateway, seconds, core):
        with tempfile.NamedTemporaryFile() as body:
            body.write(b"y" * (self.body or 0))
            body.flush()
            command = self.command(gateway, seconds, body.name)
            # `-H` before the URL, which comes last.
            commands = [[*command[:-1], "-H", field, command[-1]] for field in self.fields] or [command]
            return together([run_pinned(command, core) for command in commands], self.check, seconds)

    def check(self, out, command):
        report = json.loads(out)
        statuses, errors = report["statusCodeDistribution"], report["errorDistribution"]
        if errors or set(statuses) != {"200"}:
            raise Failed(f"not only good answers: {statuses} {errors} of {' '.join(command)}")
        count, received = statuses["200"], report["summary"]["totalData"]
        size = SIZES[self.path.rsplit("/", 1)[-1]]
        if received != count * size:
            raise Failed(f"{count} answers of {received} bytes in all, not of {size} each")
        latency = {f"{name}_ms": value * 1000 for name, value in report["latencyPercentiles"].items() if value}
        return {"requests": count, "rps": report["summary"]["requestsPerSec"], **latency}


class Handshakes:
    """A new session of TLS for each request, from four clients that never resume one."""

    def send(self, gateway, seconds, core):
        clients = [
            ["openssl", "s_time", "-new", "-time", str(max(1, round(seconds))), "-www", "/1k",
             "-connect", f"127.0.0.1:{gateway.tls}"]
        ] * 4
        return together([run_pinned(command, core) for command in clients], self.check, seconds)

    @staticmethod
    def check(out, command):
        said = re.search(r"(\d+) connections in (\d+) real seconds, (\d+) bytes read per connection", out)
        if not said or int(said[1]) == 0 or int(said[3]) < 1024:
            raise Failed(f"not only good answers: {out} of {' '.join(command)}")
        return {"requests": int(said[1]), "rps": int(said[1]) / max(int(said[2]), 1)}


def run_pinned(command, core):
    pinned = (lambda: os.sched_setaffinity(0, core)) if core else None
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=pinned)


def together(clients, check, seconds):
    """What clients that ran at once found in all; of latencies, the worst."""
    total = {}
    try:
        for client in clients:
            out, said = client.communicate(timeout=seconds + 2 * PATIENCE)
            if client.returncode != 0:
                raise Failed(f"{' '.join(client.args)}: {said}")
            for name, value in check(out, client.args).items():
                total[name] = max(total.get(name, 0), value) if name.endswith("_ms") else total.get(name, 0) + value
    except subprocess.TimeoutExpired as error:
        raise Failed(f"no end: {error}") from error
    finally:
        for client in clients:
            if client.poll() is None:
                client.kill()
                client.wait()
    return total


def cpu_per_request(gateway, load, seconds, core):
    """Microseconds of the gateway's CPU time for each request, and what was seen besides."""
    load.send(gateway, seconds / 3, core)  # pools are filled, and code is warm
    before = cpu_seconds(gateway.pid)
    found = load.send(gateway, seconds, core)
    used = cpu_seconds(gateway.pid) - before
    return {"value": used * 1e6 / found["requests"], "memory_kib": memory_kib(gateway.pid), **found}


def idle_memory(gateway, core):
    """KiB of a gateway that has answered a few requests and has nothing to do."""
    Oha("/1k", connections=1, number=20).send(gateway, 5, core)
    time.sleep(0.5)
    return {"value": memory_kib(gateway.pid)}


def idle_connections(gateway, core, count, tls):
    """KiB that each of so many open connections takes, each of which had an answer already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 200:
        raise Failed(f"only {hard} open files are allowed; {count + 200} are needed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
    before = idle_memory(gateway, core)["value"]
    trust = ssl._create_unverified_context() if tls else None
    with contextlib.ExitStack() as held:
        for _ in range(count):
            stream = socket.create_connection(("127.0.0.1", gateway.tls if tls else gateway.http), PATIENCE)
            stream = held.enter_context(trust.wrap_socket(stream) if tls else stream)
            answered(stream)
        time.sleep(1)
        return {"value": (memory_kib(gateway.pid) - before) / count}


def answered(stream):
    stream.sendall(b"GET /1k HTTP/1.1\r\nHost: localhost\r\n\r\n")
    got = b""
    while not got.partition(b"\r\n\r\n")[2][1023:]:
        piece = stream.recv(65536)
        if not piece:
            raise Failed(f"a connection was closed after {got[:60]!r}")
        got += piece
    if not got.startswith(b"HTTP/1.1 200 "):
        raise Failed(f"not a good answer: {got[:60]!r}")


def bearers():
    """A field with a token of each consumer."""
    return [f"Authorization: Bearer {token(consumer)}" for consumer in range(CONSUMERS)]
