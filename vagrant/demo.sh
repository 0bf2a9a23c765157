#!/usr/bin/env bash
# Shows what each mode does with the same closes, in network namespaces of its own. Leaves nothing behind.
#
#   client ---- near (same subnet, and router) ---- far
#
# The client closes 1,000 connections to itself, 1,000 to near and 1,000 to far. 12 s later, when the times of loopback (2 s)
# and local (10 s) are over and that of remote (60 s) is not, `twctl status` shows what is left.
# Usage: sudo vagrant/demo.sh [MODE...]      by default observe, truncate and vestigial
set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")

closes=1000 wait=12
client=twctl-demo-client near=twctl-demo-near far=twctl-demo-far
pins=/sys/fs/bpf/twctl-demo
addresses=(127.0.0.1 10.88.0.2 10.99.0.2)
shown='^twctl_(time_wait_(ended|sessions)|kernel_time_wait_sockets)'
folder=$(mktemp -d)
children=()

cleanup() {
    local namespace
    stop
    "$root/.venv/bin/twctl" release --pins "$pins" >/dev/null 2>&1 || true
    for namespace in "$client" "$near" "$far"; do
        ip netns del "$namespace" 2>/dev/null || true
    done
}

stop() { # the daemon and the servers
    [[ ${#children[@]} -eq 0 ]] || kill "${children[@]}" 2>/dev/null || true
    [[ ${#children[@]} -eq 0 ]] || wait "${children[@]}" 2>/dev/null || true
    children=()
}

namespaces() {
    local namespace
    for namespace in "$client" "$near" "$far"; do
        ip netns add "$namespace"
        ip -n "$namespace" link set lo up
    done
    ip -n $client link add eth0 type veth peer name eth0 netns $near
    ip -n $near link add eth1 type veth peer name eth0 netns $far
    ip -n $client address add 10.88.0.1/24 dev eth0
    ip -n $near address add 10.88.0.2/24 dev eth0
    ip -n $near address add 10.99.0.1/24 dev eth1
    ip -n $far address add 10.99.0.2/24 dev eth0
    ip -n $client link set eth0 up
    ip -n $near link set eth0 up
    ip -n $near link set eth1 up
    ip -n $far link set eth0 up
    ip -n $client route add default via 10.88.0.2
    ip -n $far route add default via 10.99.0.1
    # Nothing but its time ends a session here: neither a late RST, nor a port that is taken again.
    nsenter --net=/run/netns/$client sysctl -q -w net.ipv4.tcp_rfc1337=1 net.ipv4.tcp_tw_reuse=0
    nsenter --net=/run/netns/$near sysctl -q -w net.ipv4.ip_forward=1
}

serve() { # in a namespace: answers each close with one
    nsenter "--net=/run/netns/$1" "$root/.venv/bin/python" - <<'PYTHON' &
import socket

with socket.create_server(("", 7000), backlog=64) as server:
    while True:
        peer, _ = server.accept()
        with peer:
            peer.recv(1)
PYTHON
    children+=($!)
}

close_all() {
    nsenter --net=/run/netns/$client "$root/.venv/bin/python" - $closes "${addresses[@]}" <<'PYTHON'
import socket
import sys
import time

for address in sys.argv[2:]:
    while True:  # until the server listens
        try:
            socket.create_connection((address, 7000)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    for _ in range(int(sys.argv[1]) - 1):
        socket.create_connection((address, 7000)).close()
PYTHON
}

port() { # of the daemon's metrics, once it serves
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        sed -n 's/.*metrics on port //p' "$folder/log" | grep . && return
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    cat "$folder/log" >&2
    return 1
}

scrape() {
    "$root/.venv/bin/python" -c "import urllib.request as r; print(r.urlopen('http://127.0.0.1:$1/metrics').read().decode())"
}

show() {
    local mode=$1 metrics
    namespaces
    serve $client
    serve $near
    serve $far
    : >"$folder/log" # not the port of the mode before
    "$root/.venv/bin/twctl" run --mode "$mode" --netns $client --pins $pins --listen 127.0.0.1:0 2>>"$folder/log" &
    children+=($!)
    metrics=$(port $!)
    close_all
    sleep $wait
    echo
    echo "== $mode: ${wait} s after $closes closes to each of ${addresses[*]}"
    echo
    echo "\$ twctl status      # rows of zeros left out"
    "$root/.venv/bin/twctl" status --pins $pins |
        grep -vE '^[a-z]+ +ipv[46]( +0){3} |^[a-z]+( +0){3}$'
    echo
    echo "of http://127.0.0.1:$metrics/metrics:"
    scrape "$metrics" | grep -E "$shown" | grep -vE '}.* 0\.0$'
    cleanup
}

[[ $EUID -eq 0 ]] || { echo "vagrant/demo.sh: not root (run it with sudo)" >&2; exit 1; }
"$root/deploy/setup"
trap 'cleanup; rm -rf "$folder"' EXIT
modes=("$@")
[[ ${#modes[@]} -gt 0 ]] || modes=(observe truncate vestigial)
for mode in "${modes[@]}"; do
    show "$mode"
done
