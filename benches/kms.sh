#!/bin/bash
# KMS requests per second, against moto_server, in one run: ratios, not promises. Prints a table; the machine decides the numbers.
#
#   benches/kms.sh ENCLOS_KMS [SECONDS]
#
# ENCLOS_KMS is a release build of enclos-kms. Its requests are signed, and signature, policy and audit trail are dealt with as always; moto checks
# neither signatures nor policies. The load comes from wrk, on the same CPUs. Needs wrk (Debian's package) and python3 with venv; moto and boto3 are
# installed once below ~/.cache/enclos/bench-kms. Servers listen on ports of their own on 127.0.0.1.
set -euo pipefail
kms=$(realpath "$1") seconds=${2:-5}
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
"$kms" serve --dev --listen "127.0.0.1:$ours" --data "$work/data" >"$work/ours.log" 2>&1 &
servers+=($!)
"$venv/bin/moto_server" -H 127.0.0.1 -p "$theirs" >"$work/theirs.log" 2>&1 &
servers+=($!)

# Signed once: both servers take the same request for as long as its signature is fresh.
"$venv/bin/python" - "$work" "$ours" "$theirs" <<'PYTHON'
import base64, json, sys, time
import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import EndpointConnectionError

work, ports = sys.argv[1], sys.argv[2:]
for port in ports:
    url = f"http://127.0.0.1:{port}/"
    client = boto3.client("kms", endpoint_url=url, region_name="us-east-1",
                          aws_access_key_id="test", aws_secret_access_key="test")
    for attempt in range(100):
        try:
            key = client.create_key()["KeyMetadata"]["KeyId"]
            break
        except EndpointConnectionError:
            time.sleep(0.2)
    else:
        sys.exit(f"no server on port {port}")
    secret = base64.b64encode(bytes(32)).decode()
    blob = client.encrypt(KeyId=key, Plaintext=bytes(32))["CiphertextBlob"]
    requests = {
        "Encrypt": {"KeyId": key, "Plaintext": secret},
        "Decrypt": {"CiphertextBlob": base64.b64encode(blob).decode()},
        "GenerateDataKey": {"KeyId": key, "KeySpec": "AES_256"},
    }
    for operation, body in requests.items():
        body = json.dumps(body)
        headers = {"X-Amz-Target": f"TrentService.{operation}", "Content-Type": "application/x-amz-json-1.1"}
        request = AWSRequest("POST", url, data=body, headers=headers)
        SigV4Auth(Credentials("test", "test"), "kms", "us-east-1").add_auth(request)
        lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in request.headers.items()]
        with open(f"{work}/{port}-{operation}.lua", "w") as script:
            script.write("\n".join(['wrk.method = "POST"', f"wrk.body = {json.dumps(body)}", *lines, ""]))
PYTHON

# load PORT OPERATION CONNECTIONS: requests per second, 99th percentile. An answer other than 2xx ends the run.
load() {
    local out
    out=$(wrk -t1 "-c$3" "-d${seconds}s" --latency -s "$work/$1-$2.lua" "http://127.0.0.1:$1/")
    if grep -q Non-2xx <<<"$out"; then
        echo "$out" >&2
        exit 1
    fi
    awk '/99%/ { p99 = $2 } /Requests\/sec/ { rate = $2 } END { print rate, p99 }' <<<"$out"
}

printf '%-16s %-12s %8s %12s %10s %12s %10s\n' operation connections ratio enclos/s p99 moto/s p99
for operation in Encrypt Decrypt GenerateDataKey; do
    for connections in 1 32; do
        read -r our_rate our_p99 <<<"$(load "$ours" "$operation" "$connections")"
        read -r their_rate their_p99 <<<"$(load "$theirs" "$operation" "$connections")"
        ratio=$(awk -v a="$our_rate" -v b="$their_rate" 'BEGIN { printf "%.0f", a / b }')
        printf '%-16s %-12s %8s %12s %10s %12s %10s\n' "$operation" "$connections" "$ratio" "$our_rate" "$our_p99" "$their_rate" "$their_p99"
    done
done
echo "memory of enclos-kms: $(awk '/VmHWM/ { print int($2 / 1024) " MiB" }' "/proc/${servers[0]}/status") at most"
