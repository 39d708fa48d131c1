#!/usr/bin/env python3
"""dns_server.py ADDRESS: a DNS server for tests, on UDP and TCP port 53. It writes a line for each question: PROTOCOL TYPE NAME.

It knows the zone below; other names do not exist (NXDOMAIN).
"""
import ipaddress
import socket
import socketserver
import struct
import sys
import threading
import time

MANY = [f"192.0.2.{n}" for n in range(1, 101)]
ZONE = {
    "both.test": ["192.0.2.10", "2001:db8::10"],
    "four.test": ["192.0.2.4"],
    "six.test": ["2001:db8::6"],
    "empty.test": [],
    # Does not fit into a datagram.
    "many.test": MANY,
    "slow.test": ["192.0.2.20"],
    "silent.test": [],
    "web.first.test": ["192.0.2.31"],
    "db.prod.second.test": ["192.0.2.32"],
    "db.prod.deep": ["192.0.2.33"],
}
# Seconds before the answer.
SLOW = 1
TYPES = {1: "A", 28: "AAAA"}
MAX_DATAGRAM = 512
NO_SUCH_NAME = 3


def question(query):
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1:at + 1 + length].decode())
        at += 1 + length
    kind, = struct.unpack(">H", query[at + 1:at + 3])
    return ".".join(labels).lower(), TYPES.get(kind, str(kind)), query[12:at + 5]


def answer(query, protocol):
    """The answer, or None where none is ever given."""
    name, kind, asked = question(query)
    # In one call: questions come in several threads.
    sys.stdout.write(f"{protocol} {kind} {name}\n")
    sys.stdout.flush()
    if name == "silent.test":
        return None
    if name == "slow.test":
        time.sleep(SLOW)
    addresses = [ipaddress.ip_address(a) for a in ZONE.get(name, [])]
    found = [a.packed for a in addresses if kind == {4: "A", 6: "AAAA"}[a.version]]
    records = b"".join(struct.pack(">HHHIH", 0xC00C, 1 if kind == "A" else 28, 1, 60, len(a)) + a for a in found)
    truncated = protocol == "udp" and 12 + len(asked) + len(records) > MAX_DATAGRAM
    if truncated:
        found, records = [], b""
    flags = 0x8580 | (0x0200 if truncated else 0) | (0 if name in ZONE else NO_SUCH_NAME)
    return query[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + asked + records


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        query, sock = self.request
        if reply := answer(query, "udp"):
            sock.sendto(reply, self.client_address)


class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        while len(size := self.rfile.read(2)) == 2:
            if reply := answer(self.rfile.read(struct.unpack(">H", size)[0]), "tcp"):
                self.wfile.write(struct.pack(">H", len(reply)) + reply)


def main(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for base, handler in ((socketserver.ThreadingUDPServer, Datagram), (socketserver.ThreadingTCPServer, Stream)):
        kind = type("Server", (base,), {"address_family": family, "allow_reuse_address": True, "daemon_threads": True})
        server = kind((address, 53), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


main(sys.argv[1])
