"""PyPI's aws-nsm-interface, unmodified, against /dev/nsm: each connection to port 5000 gets one line of JSON.

The package's own open_nsm_device() opens the device as a buffered text file, which Python refuses for a device
that cannot seek, and the kernel's driver makes one that cannot. So the device is opened here, and the package's functions,
which only need a file descriptor, do the rest.
"""

import json
import socket

import aws_nsm_interface as nsm


def observe() -> dict:
    with open(nsm.NSM_DEV_FILE, "r+b", buffering=0) as device:
        document = nsm.get_attestation_doc(device, user_data=b"from Python", nonce=b"\x07" * 16)
        return {
            "describe": plain(nsm.describe_nsm(device)),
            "pcr0": plain(nsm.describe_pcr(device, 0)),
            "extended": plain(nsm.extend_pcr(device, 17, b"enclos")),
            "locked": nsm.lock_pcr(device, 17),
            "random": plain(nsm.get_random(device)),
            "document": plain(document["document"]),
        }


def plain(value):
    """Bytes as hex, sets as lists: what JSON can hold."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value


try:
    answer = observe()
except Exception as error:
    answer = {"error": repr(error)}

with socket.create_server(("127.0.0.1", 5000)) as server:
    while True:
        peer, _ = server.accept()
        with peer:
            peer.sendall(json.dumps(answer).encode() + b"\n")
