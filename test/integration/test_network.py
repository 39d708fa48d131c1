"""Networking and names of Wasm containers in pods with a CNI bridge, IPv4 and IPv6. docs/wasi.md names these tests."""
import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import unittest

from harness import ROOT, USER_MODE_LINUX, PodTest

# The bed's own addresses, on the pods' bridge.
BED4, BED6 = "10.88.0.1", "fd88::1"
ON_THE_NODE = {"security_context": {"namespace_options": {"network": 2, "pid": 1}}}

# Half of them of each family; all are open before the first one ends. One resets its connection.
THOUSAND_CLIENTS = """
import socket, struct, sys, threading
def client(n):
    s = socket.create_connection((sys.argv[1 + n % 2], 8000 + n % 2))
    s.sendall(b"client %d" % n)
    return s
def rest(s):
    return b"".join(iter(lambda: s.recv(65536), b""))
clients = [client(n) for n in range(1000)]
rude = client(0)
rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
rude.close()
print(sum(s.recv(100) == b"client %d" % n for n, s in enumerate(clients)))
for s in clients:
    s.shutdown(socket.SHUT_WR)
print(sum(rest(s) == b"" for s in clients))
# More than the buffers hold: what is left is sent after this side has ended.
s = socket.create_connection((sys.argv[1], 8000))
text = b"0123456789" * 2000000
sender = threading.Thread(target=lambda: (s.sendall(text), s.shutdown(socket.SHUT_WR)))
sender.start()
print(rest(s) == text)
"""

# Answers on both families with the client's address and port and what it said.
ECHO = """
import socket, socketserver, threading
class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write("{} {} ".format(*self.client_address).encode() + self.rfile.read())
class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        text, socket = self.request
        socket.sendto("{} {} ".format(*self.client_address).encode() + text, self.client_address)
for address in ("%s", "%s"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for base, handler in ((socketserver.ThreadingTCPServer, Stream), (socketserver.ThreadingUDPServer, Datagram)):
        server = type("Server", (base,), {"address_family": family})((address, 9000), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
""" % (BED4, BED6)

# Accepts and says nothing.
SILENT = """
import socket, threading
s = socket.create_server(("%s", 9001))
print("ready", flush=True)
client = s.accept()
threading.Event().wait()
""" % BED4

# Answers a datagram with an ICMP error of this type and code, as a router on the way would.
ICMP = """
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(("%s", 9002))
print("ready", flush=True)
text, (ip, port) = u.recvfrom(100)
header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + len(text), 0, 0, 64, 17, 0, socket.inet_aton(ip), socket.inet_aton("%s"))
inner = header + struct.pack(">HHHH", port, 9002, 8 + len(text), 0)
icmp = lambda sum: struct.pack(">BBHI", int(sys.argv[1]), int(sys.argv[2]), sum, 0) + inner
socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).sendto(icmp(checksum(icmp(0))), (ip, 0))
""" % (BED4, BED4)

# Asks a datagram server on each address.
DATAGRAMS = """
import socket, sys
for n, address in enumerate(sys.argv[1:]):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", 7000 + n))
    s.sendto(b"ping", (address, 9000))
    print(s.recv(100).decode())
"""

# Says ping to each HOST/PORT.
STREAMS = """
import socket, sys
for peer in sys.argv[1:]:
    with socket.create_connection(peer.split("/")) as s:
        s.sendall(b"ping")
        s.shutdown(socket.SHUT_WR)
        print(s.recv(100).decode())
"""

# Ends its half of a connection, and reads nothing until it has been told to.
HALF = """
import socket, sys
s = socket.create_connection((sys.argv[1], 9003))
s.shutdown(socket.SHUT_WR)
sys.stdin.read()
"""


class NetworkTest(PodTest):
    def pod(self, **fields):
        # A module of this size is else compiled a second time in the background.
        return super().pod(annotations={"slipway.dev/compile": "quick"}, **fields)

    def addresses(self, pod):
        network = json.loads(self.bed.crictl("inspectp", pod.sandbox).stdout)["status"]["network"]
        return [network["ip"], *(more["ip"] for more in network["additionalIps"])]

    def python(self, script, *args, **options):
        """What a program in the bed's network prints."""
        return self.bed.python(script, *args, **options).stdout.splitlines()

    @contextlib.contextmanager
    def peer(self, *command):
        """A program in the bed's network that has said that it is ready; yields a function: the lines after that."""
        with tempfile.TemporaryFile("w+") as out:
            program = subprocess.Popen(
                [f"{ROOT}/test/bed/bed", "run", self.bed.root, "python3", *command], stdout=out, stdin=subprocess.DEVNULL,
                start_new_session=True)

            def lines():
                return os.pread(out.fileno(), os.fstat(out.fileno()).st_size, 0).decode().splitlines()

            try:
                self.until(lines)
                yield lambda: lines()[1:]
            finally:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()

    def said(self, container):
        """The lines of a container that ends well."""
        self.assertEqual(container.ended()["exitCode"], 0, container.text())
        return container.text().splitlines()

    def dns_pod(self, server, *options):
        return self.pod(dns_config={"servers": [server], "searches": ["first.test", "second.test"], "options": options})

    def dns(self, address=BED4):
        return self.peer(f"{ROOT}/test/integration/dns_server.py", address)


class Network(NetworkTest):
    def test_a_server_holds_a_thousand_clients_of_both_families(self):
        pod = self.pod()
        server = pod.start(self.bed.guest("network"), ["tcp", "0.0.0.0:8000", "[::]:8001"])
        server.until("[::]:8001")
        self.assertEqual(self.python(THOUSAND_CLIENTS, *self.addresses(pod)), ["1000", "1000", "True"])
        server.until("1000 clients")

    def test_streams_and_datagrams_leave_a_pod_in_both_families(self):
        pod = self.pod()
        own = dict(zip((BED4, BED6), self.addresses(pod)))
        with self.peer("-c", ECHO):
            said = self.said(pod.start(self.bed.guest("network"), [
                "send", "hello", *(f"{kind}/{bed}:9000" for kind in ("tcp", "udp") for bed in (BED4, f"[{BED6}]"))]))
        self.assertEqual(len(said), 4)
        for line, bed in zip(said, (BED4, BED6)):
            local, peer, seen, port = re.fullmatch(r"(\S+) to (\S+): (\S+) (\d+) hello", line).groups()
            written = f"[{own[bed]}]:{port}" if ":" in own[bed] else f"{own[bed]}:{port}"
            self.assertEqual((local, seen), (written, own[bed]))
            self.assertIn(bed, peer)
        for line, bed in zip(said[2:], (BED4, BED6)):
            self.assertRegex(line, rf"^from \[?{bed}\]?:9000: {own[bed]} \d+ hello$")

    def test_a_datagram_server_knows_its_clients(self):
        pod = self.pod()
        pod.start(self.bed.guest("network"), ["udp", "[::]:9000"]).until("listening")
        self.assertEqual(self.python(DATAGRAMS, *self.addresses(pod)), [f"[::ffff:{BED4}]:7000 ping", f"[{BED6}]:7001 ping"])

    def test_waits_end_at_their_limit_and_refusals_at_once(self):
        with self.peer("-c", SILENT):
            said = self.said(self.pod().start(self.bed.guest("network"), ["timeouts", f"{BED4}:9001"]))
        in_progress = 26  # EINPROGRESS of WASI
        self.assertEqual(said, [
            "limit: Some(3s)", "receive: WouldBlock in time", "poll: time is over", "non-blocking: WouldBlock at once",
            "accept: WouldBlock at once", f"connect: Err(Some({in_progress}))", "refused: Err(ConnectionRefused)",
            "refused: ConnectionRefused at once"])

    def test_so_reuseaddr_takes_an_address_whose_connections_linger(self):
        said = self.said(self.pod().start(self.bed.guest("network"), ["reuse", "127.0.0.1:9004"]))
        self.assertEqual(said, [
            "by default: false", "without SO_REUSEADDR: Err(AddrInUse)", "set: true", "with SO_REUSEADDR: Ok(())", "listener: true",
            "beside a listener: Err(AddrInUse)"])

    def test_a_wait_for_room_to_write_sleeps_though_the_client_has_ended_its_half(self):
        pod = self.pod()
        server = pod.start(self.bed.guest("network"), ["flood", "0.0.0.0:9003"])
        server.until("listening")
        client = subprocess.Popen(
            [f"{ROOT}/test/bed/bed", "run", self.bed.root, "python3", "-c", HALF, pod.ip()], stdin=subprocess.PIPE)
        try:
            said = self.said(server)
        finally:
            client.communicate()
        self.assertEqual(said[1:], ["the client has ended: true", "room to write: time is over after 1 rounds"])

    def test_icmp_errors_wake_and_are_told(self):
        pod = self.pod()
        image = self.bed.guest("network")
        said = self.said(pod.start(image, ["refused", f"{BED4}:9002"]))
        self.assertEqual(said, ["poll: ready after 1 rounds", "receive: Err(ConnectionRefused)"])
        # Destination unreachable, host unknown: EHOSTDOWN, that WASI has no number for.
        with self.peer("-c", ICMP, "3", "7"):
            said = self.said(pod.start(image, ["refused", f"{BED4}:9002"]))
        self.assertEqual(said, ["poll: ready after 1 rounds", "receive: Err(HostUnreachable)"])

    def test_port_80_is_open_to_a_user_without_rights(self):
        pod = self.pod(linux={"sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"}})
        user = {"security_context": {"run_as_user": {"value": 1000}, "namespace_options": {"pid": 1}}}
        pod.start(self.bed.guest("network"), ["tcp", "[::]:80"], linux=user).until("listening")
        self.assertEqual(self.python(STREAMS, *(f"{address}/80" for address in self.addresses(pod))), ["ping"] * 2)

    @unittest.skipIf(USER_MODE_LINUX, "CNI's portmap wants the target MARK of ip6tables, which this kernel lacks")
    def test_the_nodes_port_leads_to_the_pod_in_both_families(self):
        pod = self.pod(port_mappings=[{"container_port": 8000, "host_port": 8088}])
        pod.start(self.bed.guest("network"), ["tcp", "[::]:8000"]).until("listening")
        self.assertEqual(self.python(STREAMS, f"{BED4}/8088", f"{BED6}/8088", "127.0.0.1/8088"), ["ping"] * 3)

    def test_localhost_is_shared_with_a_linux_container_both_ways(self):
        pod = self.pod()
        pod.start(self.bed.guest("network"), ["tcp", "127.0.0.1:8000", "[::1]:8000"]).until("[::1]")
        page = "echo a page >/tmp/page; httpd -p 8001 -h /tmp"
        ask = "for host in 127.0.0.1 ::1; do echo ping | nc $host 8000; done"
        side = pod.start("localhost/busybox:1", ["-c", f"{page}; {ask}; sleep 1000"])
        self.until(lambda: side.text() == "ping\nping")
        answers = self.said(pod.start(self.bed.guest("network"), [
            "send", "GET /page HTTP/1.0\r\n\r\n", "tcp/127.0.0.1:8001", "tcp/[::1]:8001"]))
        self.assertEqual(answers.count("a page"), 2, answers)

    def test_a_pod_on_the_nodes_network_has_its_addresses(self):
        pod = self.pod(linux=ON_THE_NODE)
        pod.start(self.bed.guest("network"), ["tcp", "127.0.0.1:8002", f"[{BED6}]:8002"], linux=ON_THE_NODE).until(BED6)
        self.assertEqual(self.python(STREAMS, "127.0.0.1/8002", f"{BED6}/8002"), ["ping"] * 2)

    def test_c_has_the_second_version_of_the_functions(self):
        pod = self.pod()
        server = pod.start(self.bed.guest("sockets"), ["9005"])
        server.until("local")
        self.assertEqual(self.python(STREAMS, f"{pod.ip()}/9005"), ["ping"])
        local, accepted, peer, received = self.said(server)
        any_address, bed = "0" * 32, "0" * 20 + "ffff" + "".join(f"{int(part):02x}" for part in BED4.split("."))
        self.assertEqual(local, f"local: family 2, {any_address}, port 9005")
        self.assertRegex(peer, rf"^peer: family 2, {bed}, port \d+$")
        self.assertEqual((accepted, received), ("accepted: non-blocking, listener: blocking", "peeked 4, FIONREAD 4, received 4"))


class Names(NetworkTest):
    def resolved(self, container):
        """What each name is resolved to, by name; and after how many seconds."""
        found = [re.fullmatch(r"(\S+): (.*) \((\d+) s\)", line).groups() for line in self.said(container)]
        return {name: answer for name, answer, _ in found}, {name: int(seconds) for name, _, seconds in found}

    def test_answers_and_refusals_of_the_pods_server(self):
        with self.dns() as questions:
            pod = self.dns_pod(BED4, "timeout:30")
            expected = {
                "both.test": "192.0.2.10 2001:db8::10", "4/both.test": "192.0.2.10", "6/both.test": "2001:db8::10",
                "four.test": "192.0.2.4", "6/four.test": "NODATA", "six.test": "2001:db8::6", "4/six.test": "NODATA",
                "empty.test": "NODATA", "nosuch.test": "NONAME", "4/slow.test": "192.0.2.20",
                "both.test/https": "192.0.2.10:443 [2001:db8::10]:443", "any/four.test": "192.0.2.4 192.0.2.4", "192.0.2.1": "192.0.2.1",
                "4/many.test": " ".join(f"192.0.2.{n}" for n in range(1, 17)),
            }
            answers, _ = self.resolved(pod.start(self.bed.guest("network"), ["names", *expected]))
            self.assertEqual(answers, expected)
            self.assertIn("tcp A many.test", questions())
            # As all functions of the crate do that take a name.
            self.assertEqual(self.said(pod.start(self.bed.guest("network"), ["lookup", "four.test"])), ["192.0.2.4:80"])

    def test_a_pod_need_not_have_search_domains(self):
        with self.dns():
            pod = self.pod(dns_config={"servers": [BED4]})
            answers, _ = self.resolved(pod.start(self.bed.guest("network"), ["names", "both.test"]))
        self.assertEqual(answers, {"both.test": "192.0.2.10 2001:db8::10"})

    def test_a_server_that_says_nothing_is_given_up_after_the_pods_timeout(self):
        with self.dns():
            # More than the default, which is five.
            pod = self.dns_pod(BED4, "timeout:7", "attempts:1")
            answers, seconds = self.resolved(pod.start(self.bed.guest("network"), ["names", "4/silent.test."]))
        self.assertEqual(answers, {"4/silent.test.": "AGAIN"})
        self.assertGreaterEqual(seconds["4/silent.test."], 7)

    def test_search_domains_and_ndots_decide_what_is_asked(self):
        with self.dns() as questions:
            container = self.dns_pod(BED4, "ndots:2").start(
                self.bed.guest("network"), ["names", "4/web", "4/db.prod", "4/db.prod.deep", "4/web.first.test."])
            self.assertEqual(self.resolved(container)[0], {
                "4/web": "192.0.2.31", "4/db.prod": "192.0.2.32", "4/db.prod.deep": "192.0.2.33", "4/web.first.test.": "192.0.2.31"})
            self.assertEqual(questions(), [f"udp A {name}" for name in (
                "web.first.test", "db.prod.first.test", "db.prod.second.test", "db.prod.deep", "web.first.test")])

    def test_hosts_come_first_in_execs_too_and_the_server_may_have_ipv6(self):
        with self.dns(BED6) as questions, tempfile.NamedTemporaryFile("w") as hosts:
            hosts.write("127.0.0.1 localhost\n::1 localhost\n10.9.8.7 listed.test listed\nfd00::7 listed.test\n192.0.2.99 four.test\n")
            hosts.flush()
            container = self.dns_pod(BED6).start(
                self.bed.guest("network"), ["udp", "127.0.0.1:9000"],
                mounts=[{"container_path": "/etc/hosts", "host_path": hosts.name, "readonly": True}])
            names = ["localhost", "6/localhost", "listed", "listed.test", "four.test"]
            said = self.bed.crictl("exec", "-s", container.id, "/network.wasm", "names", *names, "six.test").stdout.splitlines()
            self.assertEqual([line.rpartition(" (")[0] for line in said if line], [
                "localhost: ::1 127.0.0.1", "6/localhost: ::1", "listed: 10.9.8.7", "listed.test: fd00::7 10.9.8.7",
                "four.test: 192.0.2.99", "six.test: 2001:db8::6"])
            self.assertCountEqual(questions(), ["udp A six.test", "udp AAAA six.test"])
