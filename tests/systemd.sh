#!/usr/bin/env bash
# Tries the unit in deploy/systemd with a systemd of its own, in namespaces: start, reload, upgrades under requests,
# a failed upgrade, stop. Not part of `make test`, since not every machine lets root do that.
#
#   tests/systemd.sh        uses $TOLLHOUSE, or builds one; needs root, systemd, iproute2, curl
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'systemd: %s\n' "$*" >&2
    [ -z "${inside:-}" ] || $inside journalctl --no-pager -u tollhouse -n 30 >&2 || true
    exit 1
}

[ "$(id -u)" = 0 ] || fail 'needs root'
tollhouse=${TOLLHOUSE:-}
if [ -z "$tollhouse" ]; then
    cargo build --locked
    tollhouse=${CARGO_TARGET_DIR:-target}/debug/tollhouse
fi
work=$(mktemp -d)
group=
finish() {
    [ -z "${booted:-}" ] || kill "$booted" 2>/dev/null || true
    wait || true
    [ -z "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
cp "$tollhouse" "$work/tollhouse"
cp deploy/systemd/tollhouse.service "$work/"
cat >"$work/tollhouse.yaml" <<'YAML'
version: 1
listeners: [{name: main, address: "127.0.0.1:80"}]
routes: [{name: all, respond: {status: 200, body: "one\n"}}]
YAML

# Where the machine's systemd keeps its control groups, itself among them.
hierarchy=/sys/fs/cgroup
[ -e "$hierarchy/cgroup.controllers" ] || hierarchy=$hierarchy/unified
[ -e "$hierarchy/cgroup.controllers" ] || fail 'there is no cgroup2 here'
group=$hierarchy/tollhouse-test-$$
mkdir "$group"
# Everything it could change is its own: files in memory, no start-up jobs that reach for the machine's.
cat >"$work/boot" <<BOOT
mount -t tmpfs tmpfs /run
mkdir -p /run/layers/{etc,etc-work,bin,bin-work,seen}
mount --bind "$work" /run/layers/seen
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var
mkdir -p /var/{log,lib,cache,tmp}
mount --bind -o ro /proc/sys /proc/sys
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/layers/etc,workdir=/run/layers/etc-work /etc
mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=/run/layers/bin,workdir=/run/layers/bin-work /usr/bin
for unit in /lib/systemd/system/sysinit.target.wants/* systemd-remount-fs.service local-fs.target swap.target \\
    timers.target paths.target; do
    case \$unit in *journald*) ;; *) ln -sf /dev/null "/etc/systemd/system/\${unit##*/}" ;; esac
done
install -m 755 /run/layers/seen/tollhouse /usr/bin/tollhouse
install -D -m 644 /run/layers/seen/tollhouse.yaml /etc/tollhouse/tollhouse.yaml
install -m 644 /run/layers/seen/tollhouse.service /etc/systemd/system/
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' >/etc/systemd/system/tollhouse-test.target
useradd --system --user-group --no-create-home --shell /usr/sbin/nologin tollhouse
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
export container=tollhouse-test
exec /lib/systemd/systemd --unit=tollhouse-test.target
BOOT
(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec timeout --signal=KILL 120 unshare --fork --kill-child=KILL --pid --mount --mount-proc --net --ipc --uts --cgroup \
        --propagation private bash -e "$work/boot" >"$work/log" 2>&1
) &
booted=$!
for _ in $(seq 100); do
    machine=$(pgrep -n -f '^/lib/systemd/systemd --unit=tollhouse-test.target' || true)
    [ -z "$machine" ] || break
    sleep 0.1
done
[ -n "${machine:-}" ] || fail "systemd does not start here: $(cat "$work/log")"
inside="nsenter --target $machine --mount --pid --net --ipc --uts --cgroup"
for _ in $(seq 100); do
    $inside systemctl is-system-running 2>/dev/null | grep -Eq 'running|degraded' && break
    sleep 0.1
done

step() { printf 'systemd: %s\n' "$*"; }
main_pid() { $inside systemctl show --property MainPID --value tollhouse; }
answers() { [ "$($inside curl -s http://127.0.0.1/)" = "$1" ] || fail "not answered with $1"; }

$inside systemctl daemon-reload
$inside systemctl start tollhouse || fail 'it does not start'
answers one
first=$(main_pid)
[ "$($inside ps -o user= -p "$first")" = tollhouse ] || fail "it runs as $($inside ps -o user= -p "$first")"
step "starts, as a user of its own, on port 80"

$inside sed -i s/one/two/ /etc/tollhouse/tollhouse.yaml
$inside systemctl reload tollhouse
for _ in $(seq 50); do [ "$($inside curl -s http://127.0.0.1/)" = two ] && break; sleep 0.1; done
answers two
[ "$(main_pid)" = "$first" ] || fail 'a reload replaced the process'
step "reloads"

$inside bash -c 'while [ -e /run/layers ]; do curl -sf -o /dev/null http://127.0.0.1/ && echo fine || echo lost; done' >"$work/requests" &
load=$!
for _ in 1 2 3; do
    before=$(main_pid)
    $inside /usr/bin/tollhouse upgrade || fail 'an upgrade failed'
    for _ in $(seq 50); do [ "$(main_pid)" != "$before" ] && break; sleep 0.1; done
    [ "$(main_pid)" != "$before" ] || fail 'systemd does not follow'
    for _ in $(seq 100); do $inside test -e "/proc/$before" || break; sleep 0.1; done
    ! $inside test -e "/proc/$before" || fail "process $before stays"
    [ "$($inside systemctl is-active tollhouse)" = active ] || fail 'the service is not active'
done
step "is upgraded three times, and systemd follows"

$inside sed -i 's/^routes/rutes/' /etc/tollhouse/tollhouse.yaml
before=$(main_pid)
$inside /usr/bin/tollhouse upgrade >/dev/null 2>&1 && fail 'upgraded to a document with problems'
[ "$(main_pid)" = "$before" ] || fail 'the process is another'
answers two
kill "$load"
wait "$load" 2>/dev/null || true
! grep -q lost "$work/requests" || fail "$(grep -c lost "$work/requests") requests were lost"
step "serves on when an upgrade fails; $(grep -c fine "$work/requests") requests, none lost"

$inside systemctl stop tollhouse || fail 'it does not stop'
[ "$($inside systemctl show --property Result --value tollhouse)" = success ] || fail 'it did not end well'
! $inside pgrep -x tollhouse >/dev/null || fail 'a process stays'
step "stops"
