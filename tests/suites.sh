#!/usr/bin/env bash
# Runs public conformance suites against the gateway: not part of `make test`, as their programs
# cannot be installed everywhere.
#
#   tests/suites.sh h2spec      https://github.com/summerwind/h2spec, `h2spec` in PATH (or $H2SPEC)
#   tests/suites.sh autobahn    https://github.com/crossbario/autobahn-testsuite, `wstest` in PATH
#                               (or $WSTEST; it needs Python 2.7); about two minutes
#   tests/suites.sh testssl     https://github.com/testssl/testssl.sh, 3.2 or later, `testssl` in PATH
#                               (or $TESTSSL); about two minutes
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

# Starts a gateway with these routes and upstreams, and this `tls`; its port is in $port.
gateway() {
    printf '%s\n' 'version: 1' 'admin: {address: none}' 'observability: {access_log: {format: none}}' \
        "listeners: [{name: plain, address: \"127.0.0.1:0\"${2:+, tls: $2}}]" "$1" >"$work/tollhouse.yaml"
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

# Signs a certificate for a.test with the key $1.key in $work.
sign() {
    openssl req -new -key "$1.key" -subj /CN=a.test -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 90 -out "$1.pem" -extfile - <<EXT
subjectAltName=DNS:a.test
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
crlDistributionPoints=URI:http://a.test/ca.crl
EXT
}

certificates() (
    cd "$work"
    openssl ecparam -name prime256v1 -genkey -noout -out ca.key
    openssl req -x509 -new -key ca.key -days 90 -subj '/CN=suites' -out ca.pem
    openssl ecparam -name prime256v1 -genkey -noout -out ecdsa.key
    openssl genrsa -out rsa.key 2048
    sign ecdsa
    sign rsa
)

run_testssl() {
    local found
    certificates >"$work/openssl" 2>&1 || fail "$(cat "$work/openssl")"
    gateway 'routes: [{name: all, filters: [security_headers: {}], respond: {status: 200, body: "hello\n"}}]' \
        '{certificates: [{cert: ecdsa.pem, key: ecdsa.key}, {cert: rsa.pem, key: rsa.key}]}'
    "${TESTSSL:-testssl}" --quiet --color 0 --warnings off --add-ca "$work/ca.pem" --ip 127.0.0.1 \
        --csvfile "$work/findings" "$@" "https://a.test:$port" || true
    grep -q '"overall_grade"' "$work/findings" || fail 'no grade: a newer testssl.sh is needed, or it failed'
    found=$(grep -E '"(LOW|MEDIUM|HIGH|CRITICAL)"' "$work/findings" || true)
    [ -z "$found" ] || fail "$found"
    grep -E '"overall_grade".*"A\+"' "$work/findings" || fail 'the grade is not A+'
}

tollhouse=${TOLLHOUSE:-}
if [ -z "$tollhouse" ]; then
    cargo build --locked
    tollhouse=${CARGO_TARGET_DIR:-target}/debug/tollhouse
fi
case ${1:-} in
    h2spec | autobahn | testssl) "run_$@" ;;
    *) fail 'usage: tests/suites.sh h2spec|autobahn|testssl' ;;
esac
