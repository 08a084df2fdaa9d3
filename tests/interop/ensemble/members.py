"""Ensembles whose servers are of different kinds, and what their clients see of them."""

import logging
import re
import shutil
import signal
import socket
import struct
import subprocess
import time

from kazoo.client import KazooClient
from kazoo.protocol.serialization import (
    Connect,
    Create,
    Exists,
    ReplyHeader,
    Watch,
    write_buffer,
    write_string,
)
from kazoo.security import OPEN_ACL_UNSAFE

from harness import CLASS_PATH, HERE, Server, free_port, print_tail

TICK_MS = 500
# What a condition is waited for: an election, a start, a join. Java takes seconds for each, and the
# machine may have other work.
DEADLINE_S = 60

# What each kind of server logs when it brings a learner to its history, and when it is brought there.
# {id} is the learner.
SENDS = {
    "ringkeeper": {
        "DIFF": r"sending DIFF server={id}\b",
        "TRUNC": r"sending TRUNC server={id}\b",
        "SNAP": r"sending SNAP server={id}\b",
    },
    "zookeeper": {
        "DIFF": r"Sending DIFF zxid=0x[0-9a-f]+ +for peer sid: {id}\b",
        # To cut what lies above all that the leader has is told at the level of debugging alone.
        "TRUNC": r"Sending TRUNC .*for peer sid: ?{id}\b|Synchronizing with Learner sid: {id}\b",
        # It does not say to whom.
        "SNAP": r"Sending snapshot last zxid of peer is",
    },
}
TAKES = {
    "ringkeeper": {
        "DIFF": "DIFF from the leader",
        "TRUNC": "TRUNC from the leader",
        "SNAP": "SNAP from the leader",
    },
    "zookeeper": {
        "DIFF": "Getting a diff from the leader",
        "TRUNC": "Truncating log to get in sync with the leader",
        "SNAP": "Getting a snapshot from leader",
    },
}
# What Java logs when a transaction left its tree in another state than the leader's.
DIGESTS_DIFFER = "Digests are not matching"


# kazoo logs each connection that a stopped server has ended.
SILENT = logging.getLogger("silent")
SILENT.setLevel(logging.CRITICAL + 1)

# By itself kazoo waits twice as long each time that it finds no server, up to a minute: a gap would be
# as long as its wait, and not as long as the servers take.
RECONNECTS = {"max_tries": -1, "delay": 0.05, "backoff": 1, "max_jitter": 0.0}


def until(what, is_so, deadline_s=DEADLINE_S):
    """Waits until something holds, and returns it."""
    deadline = time.monotonic() + deadline_s
    while not (seen := is_so()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"never seen in {deadline_s} s: {what}")
        time.sleep(0.1)
    return seen


class Jars:
    """Apache ZooKeeper, of one version."""

    def __init__(self, version, class_path):
        self.version = version
        self.class_path = class_path

    @staticmethod
    def every():
        """3.8 from Debian, and 3.9.3 from where `tests/quorum/fetch` finds it."""
        fetch = HERE.parent / "quorum" / "fetch"
        done = subprocess.run([fetch], check=True, stdout=subprocess.PIPE, text=True)
        return [Jars("3.8", CLASS_PATH), Jars("3.9.3", f"{done.stdout.strip()}/*")]


class Ensemble:
    """Servers by number. Each keeps its directory and its ports whatever runs on them."""

    def __init__(
        self, context, name, jars, participants, observers=(), settings=None, properties=None
    ):
        self.context = context
        self.jars = jars
        self.folder = context.work / name
        self.observers = set(observers)
        self.settings = settings or {}
        self.properties = properties or {}
        self.ports = {
            id: (free_port(), free_port(), free_port()) for id in (*participants, *observers)
        }
        self.servers = {}
        self.kinds = {}
        # Where in its log the server that runs now has begun.
        self.begun = {}

    def launch(self, id, kind):
        """Starts a server as "java", or as "ours", which is the target."""
        target = "zookeeper" if kind == "java" else self.context.target
        settings = {
            "tickTime": TICK_MS,
            "initLimit": 40,
            "syncLimit": 20,
            **self.settings,
            **{
                f"server.{peer}": f"127.0.0.1:{quorum}:{election}"
                + (":observer" if peer in self.observers else "")
                for peer, (_, quorum, election) in self.ports.items()
            },
        }
        if id in self.observers:
            settings["peerType"] = "observer"
        server = Server(
            target,
            self.folder / f"server-{id}",
            # Whoever has no history is sent a snapshot, not the log from its beginning.
            properties={"zookeeper.snapshotSizeFactor": "-1", **self.properties},
            settings=settings,
            port=self.ports[id][0],
            class_path=self.jars.class_path,
        )
        (server.data / "myid").write_text(f"{id}\n")
        self.begun[id] = server.log.stat().st_size if server.log.exists() else 0
        server.launch()
        self.servers[id], self.kinds[id] = server, kind

    def start(self, id, kind):
        self.launch(id, kind)
        self.servers[id].await_serving()

    def stop(self, id):
        """SIGTERM, which must end the server in order."""
        ended = self.servers.pop(id).stop()
        if ended:
            self.context.check(f"server {id} ends in order on SIGTERM", False, ended)

    def kill(self, id):
        self.servers.pop(id).kill()

    def pause(self, id):
        """SIGSTOP: it neither reads nor writes, and its connections stay."""
        self.servers[id].process.send_signal(signal.SIGSTOP)

    def wipe(self, id):
        """Takes all that a stopped server had."""
        shutil.rmtree(self.folder / f"server-{id}" / "data")

    def close(self):
        for server in self.servers.values():
            server.kill()
        self.servers.clear()

    def print_tails(self):
        for id in self.ports:
            print(f"      | server {id}:")
            print_tail(self.folder / f"server-{id}" / "server.log", 15)

    def log(self, id):
        """What the server that runs now, or ran last, has logged."""
        with open(self.folder / f"server-{id}" / "server.log", "rb") as log:
            log.seek(self.begun[id])
            return log.read().decode(errors="replace")

    def mode(self, id):
        found = re.search(r"^Mode: (\w+)", self.servers[id].four_letter("srvr"), re.M)
        return found and found[1]

    def leader(self):
        """The number of the one that leads, once every running server has its role."""

        def all_have_a_role():
            modes = {id: self.mode(id) for id in self.servers}
            leaders = [id for id, mode in modes.items() if mode == "leader"]
            return leaders if len(leaders) == 1 and None not in modes.values() else None

        return until("one leader, and a role for all others", all_have_a_role)[0]

    def name(self, id):
        """As in: server 2 (ours, follower)."""
        kind = self.kinds[id] if self.kinds[id] == "ours" else f"Java {self.jars.version}"
        return f"server {id} ({kind}, {self.mode(id)})"

    def address(self, *ids):
        return ",".join(f"127.0.0.1:{self.ports[id][0]}" for id in ids)

    def client(self, *ids, timeout=20):
        """A client that knows these servers, in this order."""
        client = KazooClient(
            self.address(*ids),
            randomize_hosts=False,
            timeout=timeout,
            connection_retry=RECONNECTS,
            logger=SILENT,
        )
        client.start(DEADLINE_S)
        return client

    def synchronized(self, leader, learner, mark):
        """Which operations the logs of both tell of: the leader's behind a mark."""
        sends = SENDS[self.servers[leader].target]
        takes = TAKES[self.servers[learner].target]
        sent, taken = self.log(leader)[mark:], self.log(learner)
        return (
            {what for what, told in sends.items() if re.search(told.format(id=learner), sent)},
            {what for what, told in takes.items() if told in taken},
        )


def tree(client):
    """Every znode as one server has it: data, stat and ACL by path."""
    client.sync("/")
    znodes, level = {}, ["/"]
    while level:
        asked = [
            (path, client.get_async(path), client.get_acls_async(path), client.get_children_async(path))
            for path in level
        ]
        level = []
        for path, data, acl, children in asked:
            value, stat = data.get()
            # Each server has made the configuration's znode itself, at its own start.
            of_all = () if path == "/zookeeper/config" else tuple(stat)
            znodes[path] = (value, of_all, str(acl.get()[0]))
            parent = path.rstrip("/")
            level += [f"{parent}/{child}" for child in children.get()]
    return znodes


def differences(trees):
    """What the trees of several servers differ in, in words."""
    (first, expected), *others = trees.items()
    told = []
    for id, found in others:
        for path in sorted(expected.keys() | found.keys()):
            if expected.get(path) != found.get(path):
                told.append(f"{path}: server {first} has {str(expected.get(path))[-400:]}")
                told.append(f"{path}: server {id} has {str(found.get(path))[-400:]}")
    return told


class RawSession:
    """A session that is neither closed nor kept alive unless its client says so, and that goes where
    it is told to go."""

    def __init__(self, timeout_ms, read_only=False):
        self.timeout_ms = timeout_ms
        # Whether a server will do that has no leader.
        self.read_only = read_only
        self.id = 0
        self.password = bytes(16)
        self.zxid = 0
        self.socket = None
        self.events = []

    def attach(self, port):
        """Connects to a server; whether the session exists there."""
        self.drop()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        asked = Connect(0, self.zxid, self.timeout_ms, self.id, self.password, self.read_only)
        self._send(bytes(asked.serialize()))
        answer, _ = Connect.deserialize(self._receive(), 0)
        if answer.time_out > 0:
            self.id, self.password, self.timeout_ms = (
                answer.session_id,
                answer.passwd,
                answer.time_out,
            )
        return answer.time_out > 0

    def create(self, path):
        return self._request(6, Create.type, bytes(Create(path, b"raw", OPEN_ACL_UNSAFE, 0).serialize()))

    def create_ephemeral(self, path):
        return self._request(1, Create.type, bytes(Create(path, b"raw", OPEN_ACL_UNSAFE, 1).serialize()))

    def create_container(self, path):
        return self._request(4, 19, bytes(Create(path, b"raw", OPEN_ACL_UNSAFE, 4).serialize()))

    def create_with_ttl(self, path, ttl_ms):
        body = bytes(Create(path, b"raw", OPEN_ACL_UNSAFE, 5).serialize())
        return self._request(5, 21, body + struct.pack("!q", ttl_ms))

    def watch(self, path):
        return self._request(2, Exists.type, bytes(Exists(path, True).serialize()))

    def set_watches(self, paths):
        """Brings watches on data along, as Java's client does when it has connected anew."""
        written = b"".join(bytes(write_string(path)) for path in paths)
        nobody = struct.pack("!i", 0)
        body = struct.pack("!qi", self.zxid, len(paths)) + written + nobody + nobody
        return self._request(-8, 101, body)

    def is_closed(self):
        """Whether the server ends the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def next_event(self):
        """The path of the next event."""
        while not self.events:
            self._take(self._receive())
        return self.events.pop(0)

    def close(self):
        """Ends the session."""
        self._request(3, -11, b"")
        self.drop()

    def drop(self):
        """The connection is gone, and nobody has closed the session."""
        if self.socket:
            self.socket.close()
            self.socket = None

    def _request(self, xid, kind, body):
        """The error that the answer has, or 0."""
        self._send(struct.pack("!ii", xid, kind) + body)
        while True:
            header = self._take(self._receive())
            if header and header.xid == xid:
                return header.err

    def _take(self, frame):
        """An answer's header; an event is kept."""
        header, offset = ReplyHeader.deserialize(frame, 0)
        self.zxid = max(self.zxid, header.zxid)
        if header.xid != -1:
            return header
        event, _ = Watch.deserialize(frame, offset)
        self.events.append(event.path)
        return None

    def _send(self, frame):
        self.socket.sendall(bytes(write_buffer(frame)))

    def _receive(self):
        (length,) = struct.unpack("!i", self._exactly(4))
        return self._exactly(length)

    def _exactly(self, count):
        received = b""
        while len(received) < count:
            chunk = self.socket.recv(count - len(received))
            if not chunk:
                raise RuntimeError("the server has closed the connection")
            received += chunk
        return received
