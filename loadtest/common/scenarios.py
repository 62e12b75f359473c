"""What is measured side by side, and what is asked of Tollhouse."""

import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Callable

from . import Failed
from .gateways import ALL, Envoy, Haproxy, Nginx, NginxLua, Origin, Tollhouse, TollhouseFull, TollhouseHeld, TollhousePieces, token
from .load import Handshakes, Oha, bearers, cpu_per_request, idle_connections, idle_memory

ROUTES = 10_000
IDLE = 5_000


@dataclass
class Scenario:
    """One row of the comparison."""

    title: str
    #: Measures a started gateway: (gateway, seconds, core) to a record with `value`.
    measure: Callable
    #: What the value counts.
    unit: str = "µs"
    #: What gateways are set up for.
    kind: str = "plain"
    gateways: tuple = (Nginx, Haproxy, Envoy, Tollhouse)
    #: What Tollhouse's value is to be at most, as a share of nginx's in the same round.
    goal: float | None = None
    goal_full: float | None = None
    #: The same as a value; where it is given there is no ratio to judge.
    limit: float | None = None
    #: What the value is divided by instead of nginx's: a record has it as `against`.
    against: str = "nginx"
    routes: int = 0
    #: The origin alone is measured too, as what is left without a gateway.
    bound: bool = False

    def entrants(self):
        ways = (TollhousePieces, TollhouseHeld, TollhouseFull) if self.goal_full else ()
        return [one for one in ALL if one in (*self.gateways, *ways)]


def cpu(title, load, **more):
    """A scenario of CPU time for each request."""
    return Scenario(title, lambda gateway, seconds, core: cpu_per_request(gateway, load, seconds, core), **more)


def memory(title, measure, **more):
    return Scenario(title, lambda gateway, _seconds, core: measure(gateway, core), unit="KiB", **more)


def with_tokens(gateway, seconds, core):
    """Requests with tokens, once it is sure that one that nobody signed is refused."""
    forged = urllib.request.Request(gateway.url("/jwt/1k"), headers={"Authorization": f"Bearer {token(0)[:-6]}AAAAAA"})
    try:
        with urllib.request.urlopen(forged, timeout=10):
            raise Failed("a forged token was let through")
    except urllib.error.HTTPError as refused:
        if refused.code != 401:
            raise Failed(f"a forged token was answered {refused.code}, not 401") from refused
    return cpu_per_request(gateway, Oha("/jwt/1k", fields=bearers()), seconds, core)


def over_routes(gateway, seconds, core):
    load = Oha("/service-(0|[1-9][0-9]{0,3})/1k", "--rand-regex-url")
    return cpu_per_request(gateway, load, seconds, core)


SCENARIOS = {
    "h1": cpu("HTTP/1.1, 1 KiB", Oha("/1k"), goal=0.95, goal_full=1.6, bound=True),
    "post": cpu("POST of 10 KiB", Oha("/1k", body=10 << 10), goal=0.75, goal_full=1.7, bound=True),
    "100k": cpu("answer of 100 KiB", Oha("/100k"), goal=0.55, bound=True),
    "filters": cpu("1 KiB through five filters", Oha("/filters/1k"), gateways=(Nginx, Tollhouse)),
    "rate": cpu("1 KiB, 2,000 a second", Oha("/1k", "-q", "2000", "--latency-correction")),
    "churn": cpu("a connection for each request", Oha("/1k", "--disable-keepalive")),
    "https": cpu("HTTPS, kept alive, 1 KiB", Oha("/1k", tls=True), goal=1.2),
    "h2": cpu("HTTP/2 over TLS, 1 KiB", Oha("/1k", "--http2", "-p", "16", tls=True, connections=8), goal=1.2),
    "handshakes": cpu("full TLS handshakes", Handshakes(), goal=0.75),
    "jwt": Scenario("JWT (HS256), a limit for each consumer", with_tokens, kind="jwt",
                    gateways=(NginxLua, Haproxy, Envoy, Tollhouse), goal=0.9, against="nginx-lua"),
    # The origin's answers may be kept for an hour.
    "cache": cpu("a hit of 1 KiB in the cache", Oha("/cache/1k"), kind="cache", gateways=(Nginx, Haproxy, Tollhouse), goal=0.8),
    "cache-100k": cpu("a hit of 100 KiB in the cache", Oha("/cache/100k"), kind="cache", gateways=(Nginx, Haproxy, Tollhouse), goal=1.2),
    "routes": Scenario(f"{ROUTES:,} routes", over_routes, kind="routes", routes=ROUTES, goal=1.05, against="1 route"),
    "upload": cpu("upload of 10 MB", Oha("/1k", body=10_000_000, connections=4, number=60), goal=1.0),
    "download": cpu("download of 100 MiB", Oha("/100m", connections=4, number=16), goal=0.6),
    "connections": memory(f"{IDLE:,} idle connections, each", lambda *on: idle_connections(*on, IDLE, False), limit=4),
    "connections-tls": memory(f"{IDLE:,} idle connections with TLS, each", lambda *on: idle_connections(*on, IDLE, True), limit=12),
    "memory": memory("idle memory", idle_memory, limit=20 * 1024),
}


class Nobody:
    """The origin in the gateway's place, on its core: what a gateway that costs nothing would show."""

    name = "origin alone"

    def __init__(self, _origin, _kind, _routes, core):
        self.started = Origin(core)
        self.http, self.pid, self.start_seconds = self.started.http, self.started.pid, 0

    def url(self, path, _tls=False):
        return f"http://127.0.0.1:{self.http}{path}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.started.stop()
