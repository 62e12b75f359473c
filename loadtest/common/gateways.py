"""The origin, Tollhouse and the gateways it is measured beside, each started anew in a folder of its own."""

import base64
import hashlib
import hmac
import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import tempfile
import time

from . import CACHE, ROOT, TARGET, Failed, tollhouse
from .process import PATIENCE, Started, await_port, free_ports

CONFIGS = ROOT / "loadtest" / "configs"
SECRET = secrets.token_hex(16)
CONSUMERS = 8


class Origin(Started):
    """What all of them stand before (origin/main.rs), and what it costs to have nobody stand there."""

    def __init__(self, core=None):
        super().__init__([build_origin()], core, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        said = self.process.stdout.readline()
        if not said:
            self.stop()
            raise Failed("the origin does not start")
        self.http = int(said)


def build_origin():
    """Compiles the origin, unless that was done since it was last changed."""
    source, binary = ROOT / "loadtest/origin/main.rs", TARGET / "loadtest" / "origin"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        binary.parent.mkdir(parents=True, exist_ok=True)
        new = binary.with_suffix(f".{os.getpid()}")
        subprocess.run(["rustc", "--edition", "2024", "-O", "-o", new, source], check=True)
        new.rename(binary)
    return binary


def fill(text, kind, values, routes):
    """A configuration from its template: lines of this kind of test only, and names in @@ replaced."""
    lines = []
    for line in text.splitlines():
        of = re.match(r"(\w+)(\*?)\| ?(.*)", line)
        if not of:
            lines.append(line)
        elif of[2]:
            count = {"routes": routes, "consumers": CONSUMERS if kind == "jwt" else 0}[of[1]]
            lines.extend(of[3].replace("@I@", str(number)) for number in range(count))
        elif of[1] == kind:
            lines.append(of[3])
    return re.sub(r"@([A-Z0-9_]+)@", lambda name: str(values[name[1]]), "\n".join(lines) + "\n")


def make_certificate(folder):
    """A certificate of P-256 with its key, for localhost."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "365",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())


def token(consumer):
    """A token (RFC 7519, HS256) of a consumer, for a day."""
    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    claims = {"iss": "load", "sub": f"consumer-{consumer}", "exp": int(time.time()) + 86400, "scope": "read write"}
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + "." + part(json.dumps(claims).encode())
    return signed + "." + part(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest())


class Gateway:
    """A gateway in front of the origin. `kind` is what the test is about: plain, jwt, cache or routes."""

    #: Its name in reports; templates and the files made of them; what it can be measured in; paths that it has otherwise.
    name: str
    files: dict
    kinds = ("plain", "jwt", "cache", "routes")
    paths = {}
    speaks_tls = True

    @classmethod
    def missing(cls):
        """Why it cannot be measured here; None if it can."""
        return None if cls.program() else f"{cls.name} is not installed (tests/setup.sh load)"

    @classmethod
    def program(cls):
        """Where its binary is, if it is anywhere."""
        return shutil.which(cls.name) or shutil.which(cls.name, path="/usr/sbin:/usr/local/sbin")

    def __init__(self, origin, kind="plain", routes=0, core=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"load-{self.name}-"))
        self.folder.chmod(0o755)  # nginx's workers are somebody else
        self.http, self.tls = free_ports(2)
        try:
            make_certificate(self.folder)
            values = {"HTTP": self.http, "TLS": self.tls, "ORIGIN": origin.http, "RUN": self.folder, "CONFIGS": CONFIGS,
                      "SECRET": SECRET, "SECRET_BASE64": base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()}
            for template, file in self.files.items():
                (self.folder / file).write_text(fill((CONFIGS / template).read_text(), kind, values, routes))
            began = time.monotonic()
            log = self.folder / "log"
            self.started = Started(self.command(), core, log, cwd=self.folder, env={**os.environ, **self.environment(values)})
            try:
                for port in (self.http, self.tls) if self.speaks_tls else (self.http,):
                    await_port(port, self.started.process, 4 * PATIENCE)
            except BaseException as error:
                self.started.stop()
                if isinstance(error, OSError):
                    raise Failed(f"{self.name} does not start: {self.started.said()}") from error
                raise
            self.start_seconds = time.monotonic() - began
            self.pid = self.started.pid
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def command(self):
        raise NotImplementedError

    def environment(self, _values):
        return {}

    def url(self, path, tls=False):
        path = self.paths.get(path, path)
        return f"https://127.0.0.1:{self.tls}{path}" if tls else f"http://127.0.0.1:{self.http}{path}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.started.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Tollhouse(Gateway):
    name = "tollhouse"
    files = {"tollhouse/main.yaml": "tollhouse.yaml", "routes.yaml": "routes.yaml"}

    threads = 1

    @classmethod
    def missing(cls):
        return None

    def command(self):
        self.socket = pathlib.Path(tempfile.mkdtemp(prefix="load-", dir=self.folder)) / "upgrade.sock"
        return [tollhouse(), "run", "-c", self.folder / "tollhouse.yaml"]

    def environment(self, values):
        values = {name: str(values[name]) for name in ("HTTP", "TLS", "ORIGIN", "SECRET")}
        return {**values, "THREADS": str(self.threads), "UPGRADE_SOCKET": str(self.socket)}


class TollhouseFull(Tollhouse):
    """The same by the way through Pingora's proxy."""

    name = "tollhouse, full path"
    paths = {"/1k": "/full/1k", "/100k": "/full/100k", "/100m": "/full/100m"}
    kinds = ("plain",)


class TollhouseHeld(Tollhouse):
    """The same through a filter that wants requests whole."""

    name = "tollhouse, requests held"
    paths = {"/1k": "/held/1k", "/100k": "/held/100k", "/100m": "/held/100m"}
    kinds = ("plain",)


class TollhousePieces(Tollhouse):
    """The same through a filter that may change answers."""

    name = "tollhouse, answers filtered"
    paths = {"/1k": "/pieces/1k", "/100k": "/pieces/100k", "/100m": "/pieces/100m"}
    kinds = ("plain",)


class Nginx(Gateway):
    name = "nginx"
    files = {"nginx.conf": "nginx.conf"}
    kinds = ("plain", "cache", "routes")

    def command(self):
        return [self.program(), "-p", self.folder, "-e", self.folder / "error.log", "-c", self.folder / "nginx.conf"]


class NginxLua(Nginx):
    """nginx with what Kong and APISIX would have Lua do."""

    name = "nginx-lua"
    kinds = ("jwt",)

    @classmethod
    def program(cls):
        return Nginx.program()

    @classmethod
    def missing(cls):
        module, json_module = "/usr/lib/nginx/modules/ngx_http_lua_module.so", "/usr/lib/x86_64-linux-gnu/lua/5.1/cjson.so"
        found = cls.program() and os.path.exists(module) and os.path.exists(json_module)
        return None if found else "nginx's module for Lua is not installed (tests/setup.sh load)"


class Haproxy(Gateway):
    name = "haproxy"
    files = {"haproxy.cfg": "haproxy.cfg", "haproxy.map": "routes.map"}

    def command(self):
        return [self.program(), "-db", "-f", self.folder / "haproxy.cfg"]


class Envoy(Gateway):
    name = "envoy"
    files = {"envoy.yaml": "envoy.yaml"}

    @classmethod
    def program(cls):
        kept = CACHE / "load" / "bin" / "envoy"
        return os.environ.get("ENVOY") or shutil.which("envoy") or (kept if kept.exists() else None)

    def command(self):
        return [self.program(), "-c", self.folder / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


ALL = [Nginx, NginxLua, Haproxy, Envoy, Tollhouse, TollhousePieces, TollhouseHeld, TollhouseFull]
