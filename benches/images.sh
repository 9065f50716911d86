#!/bin/bash
# Images, against AWS's tools, in one run: ratios, not promises. Prints a table; the machine decides the numbers.
#
#   benches/images.sh ENCLOS PEERS [RUNS]
#
# ENCLOS is a release build of enclos; PEERS the folder with AWS's nitro-cli and eif_build, which `cargo xtask differential`
# installs (~/.cache/enclos/peers/bin). Runs alternate between the tools, the best of each counts. Needs python3 and 2 GB in TMPDIR.
set -euo pipefail
enclos=$(realpath "$1") peers=$(realpath "$2") runs=${3:-5}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NITRO_CLI_LOGS_PATH=$work

python3 - "$work" <<'PYTHON'
import os, struct, sys, tarfile, io, random
work = sys.argv[1]
random.seed(1)

# A bzImage as far as loaders look, of 12 MiB.
code = os.urandom(12 << 20)
head = bytearray(1024)
head[0x1f1] = 1
head[0x1f4:0x1f8] = struct.pack("<I", len(code) // 16)
head[0x1fe:0x200] = b"\x55\xaa"
head[0x202:0x208] = b"HdrS\x0f\x02"
open(f"{work}/kernel", "wb").write(bytes(head) + code)

# Ramdisks that begin like archives: nobody unpacks them here. 300 MB altogether.
open(f"{work}/ramdisk0", "wb").write(b"070701" + os.urandom(2 << 20))
with open(f"{work}/ramdisk1", "wb") as out:
    out.write(b"070701")
    for _ in range(272):
        out.write(os.urandom(1 << 20))

# A root file system of 500 MB in 40,000 files.
with tarfile.open(f"{work}/rootfs.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
    block = os.urandom(1 << 20)
    for number in range(40_000):
        size = 12_500 + random.randrange(-500, 500)
        start = random.randrange(0, len(block) - size)
        info = tarfile.TarInfo(f"usr/lib/{number % 100}/{number}")
        info.size, info.mode = size, 0o644
        tar.addfile(info, io.BytesIO(block[start : start + size]))
PYTHON

# Wall seconds and peak memory (KiB) of a command, its output dropped.
measured() {
    python3 - "$@" <<'PYTHON'
import os, resource, subprocess, sys, time
start = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds = time.monotonic() - start
if done.returncode:
    sys.exit(f"{sys.argv[1:]}: {done.stderr.decode()}")
print(f"{seconds:.3f} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
PYTHON
}

# compare NAME OURS... -- THEIRS...: alternates, keeps the best time and the largest memory of each.
compare() {
    local name=$1 ours=() theirs=()
    shift
    while [ "$1" != -- ]; do ours+=("$1"); shift; done
    shift
    theirs=("$@")
    for _ in $(seq "$runs"); do
        echo "ours $(measured "${ours[@]}")"
        echo "theirs $(measured "${theirs[@]}")"
    done | python3 -c '
import sys
best, peak = {}, {}
for line in sys.stdin:
    who, seconds, memory = line.split()
    best[who] = min(best.get(who, 1e9), float(seconds))
    peak[who] = max(peak.get(who, 0), int(memory) / 1024)
ours, theirs = best["ours"], best["theirs"]
columns = f"{ours:8.3f} {theirs:8.3f} {theirs / ours:7.2f}"
print(f"{sys.argv[1]:44}", columns, "{ours:9.1f} {theirs:9.1f}".format(**peak))
' "$name"
}

parts=(--kernel "$work/kernel" --cmdline "console=ttyS0 quiet" --ramdisk "$work/ramdisk0" --ramdisk "$work/ramdisk1")
printf '%-44s %8s %8s %7s %9s %9s\n' "best of $runs" "ours s" "other s" ratio "ours MiB" "other MiB"
compare "measure and assemble 300 MB: eif_build" \
    "$enclos" eif assemble "${parts[@]}" --output "$work/ours.eif" -- \
    "$peers/eif_build" "${parts[@]}" --output "$work/theirs.eif"
compare "describe 300 MB: nitro-cli" \
    "$enclos" describe-eif --eif-path "$work/ours.eif" -- \
    "$peers/nitro-cli" describe-eif --eif-path "$work/ours.eif"
compare "measure 300 MB: openssl sha384, one pass" \
    "$enclos" eif measure "$work/ours.eif" -- openssl dgst -sha384 "$work/ours.eif"

# What `plan` does beside reading and hashing an archive once: tree, archive, two more hashes.
kernel=$("$enclos" kernel path 2>/dev/null || true)
if [ -n "$kernel" ] && [ -n "${ENCLOS_GUEST_DIR:-}" ]; then
    printf '[app]\ncommand = ["/usr/lib/0/0"]\n' >"$work/enclos.toml"
    compare "500 MB, 40,000 files to EIF: sha384sum of it" \
        "$enclos" build "$work/rootfs.tar" --config "$work/enclos.toml" --output "$work/rootfs.eif" -- \
        openssl dgst -sha384 "$work/rootfs.tar"
else
    echo "500 MB, 40,000 files: not run, it needs \`enclos kernel fetch\` and ENCLOS_GUEST_DIR"
fi
