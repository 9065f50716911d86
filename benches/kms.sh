#!/bin/bash
# KMS requests per second, against moto_server, in one run: ratios, not promises. Prints a table; the machine decides the numbers.
#
#   benches/kms.sh ENCLOS_KMS [SECONDS [DOCUMENTS]]
#
# ENCLOS_KMS is a release build of enclos-kms. Its requests are signed, and signature, policy and audit trail are dealt with as always; moto checks
# neither signatures nor policies. The load comes from wrk, on the same CPUs. Needs wrk (Debian's package), openssl and python3 with venv; moto and
# boto3 are installed once below ~/.cache/enclos/bench-kms. Servers listen on ports of their own on 127.0.0.1.
#
# DOCUMENTS is a release build of the example `documents` of enclos-attest (cargo build --release -p enclos-attest --example documents); with it attested
# Decrypt is measured, with a document of its own for every request.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
kms=$(realpath "$1") seconds=${2:-5} documents=${3:+$(realpath "$3")}
command -v wrk >/dev/null || { echo "wrk is missing: apt-get install wrk" >&2; exit 1; }
venv=${XDG_CACHE_HOME:-$HOME/.cache}/enclos/bench-kms
if [ ! -x "$venv/bin/moto_server" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'moto[server]==5.2.5' boto3
fi
work=$(mktemp -d)
servers=()
trap 'kill "${servers[@]}" 2>/dev/null; wait; rm -rf "$work"' EXIT

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
ours=$(free_port) theirs=$(free_port)
mkdir "$work/ours" "$work/theirs"
trust=()
if [ -n "$documents" ]; then
    openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 | openssl pkey -pubout -outform DER -out "$work/public.der"
    pcr0=$("$documents" "$work/public.der" $((seconds * 6000)) "$work")
    trust=(--trust-root "$work/root.pem")
fi
"$kms" serve --dev --listen "127.0.0.1:$ours" --data "$work/data" "${trust[@]}" >"$work/ours.log" 2>&1 &
servers+=($!)
"$venv/bin/moto_server" -H 127.0.0.1 -p "$theirs" >"$work/theirs.log" 2>&1 &
servers+=($!)

# requests WHAT PORT …: signed in advance, taken for as long as their signatures are fresh.
requests() {
    "$venv/bin/python" "$here/kms_requests.py" "$1" "http://127.0.0.1:$2/" "${@:3}"
}
requests basic "$ours" "$work/ours"
requests basic "$theirs" "$work/theirs"

# load PORT SCRIPT CONNECTIONS [SECONDS]: requests per second, 99th percentile. An answer other than 2xx ends the run.
load() {
    local out
    out=$(wrk -t1 "-c$3" "-d${4:-$seconds}s" --latency -s "$2" "http://127.0.0.1:$1/")
    if grep -q -e Non-2xx -e 'Socket errors' <<<"$out"; then
        echo "$out" >&2
        exit 1
    fi
    awk '/99%/ { p99 = $2 } /Requests\/sec/ { rate = $2 } END { print rate, p99 }' <<<"$out"
}

memory() {
    awk -v what="$1" '$1 == what ":" { printf "%d MiB", $2 / 1024 }' "/proc/${servers[0]}/status"
}

echo "load average before: $(cut -d' ' -f1 /proc/loadavg)"
printf '%-16s %-12s %8s %12s %10s %12s %10s\n' operation connections ratio enclos/s p99 moto/s p99
for operation in Encrypt Decrypt GenerateDataKey; do
    for connections in 1 32; do
        read -r our_rate our_p99 <<<"$(load "$ours" "$work/ours/$operation.lua" "$connections")"
        read -r their_rate their_p99 <<<"$(load "$theirs" "$work/theirs/$operation.lua" "$connections")"
        ratio=$(awk -v a="$our_rate" -v b="$their_rate" 'BEGIN { printf "%.0f", a / b }')
        printf '%-16s %-12s %8s %12s %10s %12s %10s\n' "$operation" "$connections" "$ratio" "$our_rate" "$our_p99" "$their_rate" "$their_p99"
    done
done
echo "memory: $(memory VmRSS), $(memory VmHWM) at most"
kill "${servers[1]}"

if [ -n "$documents" ]; then
    requests attested "$ours" "$work/attested.lua" "$work/documents" "$pcr0"
    echo "attested Decrypt, 32 connections: $(load "$ours" "$work/attested.lua" 32)"
fi

# Random keys of so many.
for count in 100 10000 100000; do
    requests create "$ours" "$work/create.lua"
    while [ "$(requests count "$ours" "$count")" -lt "$count" ]; do
        load "$ours" "$work/create.lua" 32 1 >/dev/null
    done
    requests keys "$ours" "$work/keys.lua" "$count"
    echo "Encrypt, $count keys, 32 connections: $(load "$ours" "$work/keys.lua" 32); memory $(memory VmRSS), $(memory VmHWM) at most"
done
