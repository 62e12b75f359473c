#!/usr/bin/env bash
# Runs public conformance suites against the gateway: not part of `make test`, as their programs
# cannot be installed everywhere.
#
#   tests/suites.sh h2spec      https://github.com/summerwind/h2spec, `h2spec` in PATH (or $H2SPEC)
#   tests/suites.sh autobahn    https://github.com/crossbario/autobahn-testsuite, `wstest` in PATH
#                               (or $WSTEST; it needs Python 2.7); about two minutes
#
# Uses $TOLLHOUSE, or builds one. Only loopback addresses, on ports that were free.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
started=()
finish() {
    local pid
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT

fail() {
    printf 'suites: %s\n' "$*" >&2
    exit 1
}

# Starts a gateway with these routes and upstreams; its port is in $port.
gateway() {
    printf '%s\n' 'version: 1' 'admin: {address: none}' 'observability: {access_log: {format: none}}' \
        'listeners: [{name: plain, address: "127.0.0.1:0"}]' "$1" >"$work/tollhouse.yaml"
    "$tollhouse" run -c "$work/tollhouse.yaml" 2>"$work/log" &
    started+=($!)
    wait_for 'listening listener=plain' "$work/log"
    port=$(sed -n 's/.*bound listener=plain address=127.0.0.1://p' "$work/log")
}

# Waits, for ten seconds at most, until a file says something.
wait_for() {
    local n
    for ((n = 0; n < 100; n++)); do
        if grep -q "$1" "$2" 2>/dev/null; then return 0; fi
        sleep 0.1
    done
    fail "$(cat "$2")"
}

run_h2spec() {
    gateway 'routes: [{name: all, respond: {status: 200, body: "hello\n"}}]'
    # 3.5/2 (an invalid preface) fails by design: on a port of both versions it is an HTTP/1.1 request.
    "${H2SPEC:-h2spec}" -h 127.0.0.1 -p "$port" -o 2 "$@"
}

run_autobahn() {
    local wstest=${WSTEST:-wstest} echo_port=39011
    $wstest -m testeeserver -w "ws://127.0.0.1:$echo_port" >"$work/testee" 2>&1 &
    started+=($!)
    # The suite's server insists on its own port in Host.
    gateway "upstreams: [{name: echo, host: backend, backends: [{address: \"127.0.0.1:$echo_port\"}]}]
routes: [{name: all, upstream: echo}]"
    cat >"$work/client.json" <<JSON
{"outdir": "$work/report", "servers": [{"agent": "tollhouse", "url": "ws://127.0.0.1:$port"}],
 "cases": ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.1.*", "13.1.*"],
 "exclude-cases": [], "exclude-agent-cases": {}}
JSON
    $wstest -m fuzzingclient -s "$work/client.json" >"$work/fuzz" 2>&1 || fail "$(tail -5 "$work/fuzz")"
    grep -o '"behavior": "[A-Z-]*"' "$work/report/index.json" | sort | uniq -c
    ! grep -q '"behavior": "\(FAILED\|UNCLEAN\)"' "$work/report/index.json"
}

tollhouse=${TOLLHOUSE:-}
if [ -z "$tollhouse" ]; then
    cargo build --locked
    tollhouse=${CARGO_TARGET_DIR:-target}/debug/tollhouse
fi
case ${1:-} in
    h2spec | autobahn) "run_$@" ;;
    *) fail 'usage: tests/suites.sh h2spec|autobahn' ;;
esac
