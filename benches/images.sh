#!/bin/bash
# Images, against AWS's tools and OpenSSL, in one run: ratios, not promises. Prints a table, ratio first; the machine decides the
# numbers. On a machine that others use, the ratio of processor time says more than that of wall time.
#
#   benches/images.sh ENCLOS PEERS [RUNS]
#
# ENCLOS is a release build of enclos; PEERS the folder with AWS's nitro-cli and eif_build, which `cargo xtask differential`
# installs (~/.cache/enclos/peers/bin). Runs alternate between the tools, the best of each counts. Needs python3, openssl and 3 GB in TMPDIR.
set -euo pipefail
enclos=$(realpath "$1") peers=$(realpath "$2") runs=${3:-5}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NITRO_CLI_LOGS_PATH=$work

python3 - "$work" <<'PYTHON'
import hashlib, io, json, os, random, struct, sys, tarfile
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

# The same as the only layer of an OCI archive, not packed.
layer = open(f"{work}/rootfs.tar", "rb").read()
blobs = {}
def blob(content):
    name = hashlib.sha256(content).hexdigest()
    blobs[f"blobs/sha256/{name}"] = content
    return {"digest": f"sha256:{name}", "size": len(content)}
stored = blob(layer)
config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/usr/lib/0/0"]},
          "rootfs": {"type": "layers", "diff_ids": [stored["digest"]]}}
manifest = {"config": blob(json.dumps(config).encode()), "layers": [stored]}
blobs["index.json"] = json.dumps({"manifests": [blob(json.dumps(manifest).encode())]}).encode()
blobs["oci-layout"] = b"{}"
with tarfile.open(f"{work}/oci.tar", "w") as tar:
    for name, content in blobs.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

# A kernel with its modules built in, and guest programs that nobody starts here.
os.makedirs(f"{work}/kernel-folder/modules")
os.link(f"{work}/kernel", f"{work}/kernel-folder/vmlinuz")
with open(f"{work}/kernel-folder/modules/modules.builtin", "w") as out:
    for name in ["virtio_mmio", "vmw_vsock_virtio_transport", "nsm"]:
        out.write(f"kernel/{name}.ko\n")
os.mkdir(f"{work}/guest")
for name in ["enclos-init", "enclos-agent"]:
    open(f"{work}/guest/{name}", "wb").write(os.urandom(1 << 20))
open(f"{work}/enclos.toml", "w").write('[app]\ncommand = ["/usr/lib/0/0"]\n')
PYTHON

# Wall seconds, processor seconds and peak memory (KiB) of a command, its output dropped. Every run writes a new file.
measured() {
    rm -f "$work/ours.eif" "$work/theirs.eif"
    python3 - "$@" <<'PYTHON'
import resource, subprocess, sys, time
start = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds = time.monotonic() - start
if done.returncode:
    sys.exit(f"{sys.argv[1:]}: {done.stderr.decode()}")
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{seconds:.3f} {used.ru_utime + used.ru_stime:.3f} {used.ru_maxrss}")
PYTHON
}

# compare AIM NAME OURS... -- THEIRS...: alternates, keeps the least time and the largest memory of each. An aim `3` is how many
# times faster ours should be; `/1.2` how many times slower it may be.
compare() {
    local aim=$1 name=$2 ours=() theirs=()
    shift 2
    while [ "$1" != -- ]; do ours+=("$1"); shift; done
    shift
    theirs=("$@")
    for _ in $(seq "$runs"); do
        echo "ours $(measured "${ours[@]}")"
        echo "theirs $(measured "${theirs[@]}")"
    done | python3 -c '
import sys
aim, name = sys.argv[1:]
least, peak = {}, {}
for line in sys.stdin:
    who, *figures, memory = line.split()
    figures = [float(figure) for figure in figures]
    least[who] = [min(pair) for pair in zip(least.get(who, figures), figures)]
    peak[who] = max(peak.get(who, 0), int(memory) / 1024)
slower = aim.startswith("/")
ratios = [ours / theirs if slower else theirs / ours for ours, theirs in zip(least["ours"], least["theirs"])]
relation = "at most" if slower else "at least"
columns = [f"{ratio:6.2f}" for ratio in ratios] + [f"{relation:>8} {aim.strip(chr(47)):4}"]
columns += [f"{least[who][0]:7.3f}" for who in ("ours", "theirs")] + [f"{peak[who]:6.1f}" for who in ("ours", "theirs")]
print(*columns, name, sep="  ")
' "$aim" "$name"
}

parts=(--kernel "$work/kernel" --cmdline "console=ttyS0 quiet" --ramdisk "$work/ramdisk0" --ramdisk "$work/ramdisk1")
build=(--kernel "$work/kernel-folder" --guest "$work/guest" --config "$work/enclos.toml" --output "$work/ours.eif")
"$enclos" eif assemble "${parts[@]}" --output "$work/image.eif" >/dev/null
echo "least of $runs; ratio of wall and of processor time, aim, wall seconds (ours, other), peak MiB (ours, other)"
compare 3 "300 MB put together and measured, against eif_build" \
    "$enclos" eif assemble "${parts[@]}" --output "$work/ours.eif" -- \
    "$peers/eif_build" "${parts[@]}" --output "$work/theirs.eif"
compare 3 "300 MB described, against nitro-cli" \
    "$enclos" describe-eif --eif-path "$work/image.eif" -- \
    "$peers/nitro-cli" describe-eif --eif-path "$work/image.eif"
compare /1.2 "300 MB measured, over one SHA-384 pass of OpenSSL" \
    "$enclos" eif measure "$work/image.eif" -- openssl dgst -sha384 "$work/image.eif"
compare /1.5 "root file system of 500 MB in 40,000 files to an EIF, over one SHA-384 pass" \
    "$enclos" build "$work/rootfs.tar" "${build[@]}" -- openssl dgst -sha384 "$work/rootfs.tar"
compare /1.5 "the same in an OCI archive, over one SHA-384 pass" \
    "$enclos" build "$work/oci.tar" "${build[@]}" -- openssl dgst -sha384 "$work/oci.tar"
