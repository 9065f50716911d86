"""An operator on a host with cgroup v2: starts enclos-hypervisor, lets it run enclaves whose engine is a stand-in, and looks at
the groups. Each connection to port 5000 gets one line of JSON with what was seen.

The host is an enclave itself, because its kernel has the controllers that the machine which runs the tests may have bound to
cgroup v1. This program is its engine too, when it is called like QEMU.
"""

import glob
import json
import os
import signal
import socket
import subprocess
import sys
import time

GROUPS = "/sys/fs/cgroup"
RUN = "/run/host"
LOG = "/tmp/hypervisor.log"
HUNGRY = "/tmp/engine-is-hungry"
ENVIRONMENT = {**os.environ, "ENCLOS_RUN_DIR": RUN, "ENCLOS_BOOT_TIMEOUT_MS": "600000"}


def engine() -> None:
    """What enclos-vmm takes for QEMU: sleeps, or takes memory until it is stopped."""
    if sys.argv[1] == "--version":
        print("QEMU emulator version 7.2.0")
    elif sys.argv[1] == "-machine" and "-device" in sys.argv and "help" in sys.argv:
        print('name "vhost-user-vsock-device", name "vhost-user-rng"')
    elif os.path.exists(HUNGRY):
        taken = []
        while True:
            taken.append(b"x" * (16 << 20))
    else:
        time.sleep(3600)


def until(what, limit=120):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what.__doc__}; the log:\n{read(LOG)}")


def read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def start_hypervisor():
    command = ["/app/enclos-hypervisor", "serve", "--config=/app/host.toml", "--state-dir=/tmp/state"]
    command += [f"--run-dir={RUN}", "--qemu=/app/engine.py", "--memory-mib=512"]
    log = open(LOG, "a")
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=log)

    def answers():
        "the hypervisor does not answer"
        return subprocess.run(["/app/enclos", "describe-enclaves"], env=ENVIRONMENT, capture_output=True).returncode == 0

    until(answers)
    return process


def start_enclave():
    command = ["/app/enclos", "run-enclave", "--cpu-ids", "1", "--memory", "128", "--eif-path", "/app/inner.eif"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def inner_groups():
    return sorted(glob.glob(f"{GROUPS}/enclaves-*/i-*"))


def members():
    "no enclave with a vmm and an engine appeared"
    groups = inner_groups()
    pids = (read(f"{groups[0]}/cgroup.procs") or "").split() if groups else []
    return (groups[0], [int(pid) for pid in pids]) if len(pids) == 2 else None


def limits(group, pids):
    files = ["cpuset.cpus", "cpuset.mems", "memory.max", "memory.swap.max", "pids.max"]
    return {
        "group": group,
        "files": {file: read(f"{group}/{file}") for file in files},
        "affinity": [sorted(os.sched_getaffinity(pid)) for pid in pids],
        "uids": [os.stat(f"/proc/{pid}").st_uid for pid in pids],
        "memory": int(read(f"{group}/memory.current")),
    }


def observe():
    hypervisor, enclave = start_hypervisor(), start_enclave()
    seen = limits(*until(members))
    seen["hypervisor"] = read(f"/proc/{hypervisor.pid}/cgroup")
    doctor = subprocess.run(["/app/enclos", "doctor", "--json"], env=ENVIRONMENT, capture_output=True, text=True)
    seen["doctor"] = [one for one in json.loads(doctor.stdout) if one["what"] == "limits"]

    hypervisor.send_signal(signal.SIGKILL)
    hypervisor.wait()
    enclave.wait()
    seen["left_by_sigkill"] = inner_groups()
    hypervisor = start_hypervisor()
    seen["left_after_restart"] = inner_groups()

    open(HUNGRY, "w").close()
    seen["hungry"] = start_enclave().communicate()[0]
    seen["left_after_hunger"] = inner_groups()
    hypervisor.send_signal(signal.SIGTERM)
    seen["status"] = hypervisor.wait()
    seen["left_at_the_end"] = glob.glob(f"{GROUPS}/enclaves-*") + glob.glob(f"{GROUPS}/hypervisor-*")
    seen["log"] = read(LOG)
    return seen


def main():
    try:
        answer = observe()
    except Exception as error:
        answer = {"error": f"{error!r}; the log:\n{read(LOG)}"}
    with socket.create_server(("127.0.0.1", 5000)) as server:
        while True:
            peer, _ = server.accept()
            with peer:
                peer.sendall(json.dumps(answer).encode() + b"\n")


if len(sys.argv) > 1:
    engine()
else:
    main()
