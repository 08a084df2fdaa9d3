"""A data directory that passes between Apache ZooKeeper and the target, several times.

Each holder of the directory writes to it, is dumped through a client, and ends: by SIGTERM, by
kill -9 at rest, or by kill -9 under load. Then ZooKeeper's own code reads the directory (Inspect),
checking every digest on the way, and the next holder opens it in place. All three must agree on
every znode's data, stat and ACL, on the last zxid, and on the sessions with their ephemerals.

With TARGET=zookeeper both holders are Apache ZooKeeper, which proves the suite.
"""

import difflib
import re
import shutil
import subprocess
import time

from harness import Server, compile_java, java, print_tail, run as run_program

# UTF-8 paths have the same digest on every side only if every JVM takes them for UTF-8.
UTF8 = ("-Dfile.encoding=UTF-8", "-Dzookeeper.extendedTypesEnabled=true")

# Who holds the directory in turn, how many znodes it adds, how it compresses snapshots, and how it
# ends. Under load means: while writes are on their way, so that a tail of them is in doubt.
ROUNDS = [
    ("zookeeper", 10_000, "", "killed"),
    ("target", 3_000, "", "killed"),
    ("zookeeper", 2_000, "gz", "stopped"),
    ("target", 2_000, "gz", "killed under load"),
    ("zookeeper", 1_000, "snappy", "killed under load"),
    ("target", 1_000, "snappy", "stopped"),
    ("zookeeper", 500, "", "stopped"),
]

# The owners stored in a container, and in a TTL znode with a millisecond to live.
CONTAINER, BRIEF = "8000000000000000", "ff00000000000001"
REAPED = (CONTAINER, BRIEF)


class Relay:
    """The directory, and what must be true of it."""

    def __init__(self, context):
        self.context = context
        self.check = context.check
        self.classes = compile_java(context, "disk")
        self.directory = context.work / "shared"
        self.acknowledged = context.work / "acknowledged"
        self.acknowledged.touch()
        # By session: its password, as its client was given it.
        self.sessions = {}
        # Ephemerals of sessions that were closed.
        self.departed = set()
        # What Inspect found when the last holder had ended.
        self.inspected = None

    def round(self, number, holder, count, compression, end):
        target = self.context.target if holder == "target" else "zookeeper"
        title = f"round {number} ({target}, {end})"
        # Snapshots every 1500 to 3000 transactions, logs rolled as often; nothing is reaped or
        # expires while the directory passes on.
        properties = {"znode.container.checkIntervalMs": "3600000"}
        if compression:
            properties["zookeeper.snapshot.compression.method"] = compression
        server = self.server(target, number, properties)
        try:
            server.start()
            if self.inspected:
                self.opened(title, server)
            self.fill(title, server, number, count)
            dump = self.dump(server)
            if end == "killed under load":
                dump = None
                self.load(title, server, number)
            elif end == "killed":
                server.kill()
            else:
                self.check(f"{title}: ends in order", not (said := server.stop()), said)
            self.inspect(title, dump)
        except BaseException:
            server.kill()
            print_tail(server.log)
            raise

    def reap(self, number):
        """A last holder that looks for what has had its time: emptied containers, TTLs gone by."""
        title = f"round {number} ({self.context.target}, reaping)"
        due = self.due(self.inspected.znodes)
        self.check(f"{title}: there is something to reap", len(due) >= 2 * len(ROUNDS), due)
        server = self.server(self.context.target, number, {"znode.container.checkIntervalMs": "300"})
        try:
            server.start()
            deadline = time.monotonic() + 60
            left, dump = due, []
            while left and time.monotonic() < deadline:
                try:
                    dump = self.dump(server)
                except RuntimeError as error:
                    # While znodes go, their parents change under the dump.
                    print(f"      {str(error).splitlines()[1][:200]}")
                    continue
                left = self.due(dump)
            self.check(f"{title}: the {len(due)} that are due go", not left, left)
            stays = {path(line) for line in dump}
            wrong = [
                gone
                for line in self.inspected.znodes
                if (gone := path(line)) not in stays and self.inspected.owners.get(gone) not in REAPED
            ]
            self.check(f"{title}: all others stay", not wrong, wrong)
            self.check(f"{title}: ends in order", not (said := server.stop()), said)
        except BaseException:
            server.kill()
            print_tail(server.log)
            raise

    def due(self, znodes):
        """The znodes that a server would reap: all have no children, and containers had some."""
        return [
            line
            for line in znodes
            if line.split(" children=")[1].split(" ")[0] == "0"
            and (owner := self.inspected.owners.get(path(line))) in REAPED
            and (owner != CONTAINER or " cversion=0 " not in line)
        ]

    def server(self, target, number, properties):
        """A server on the directory, with sessions that outlive the suite."""
        properties = {"zookeeper.snapCount": "3000", "file.encoding": "UTF-8", **properties}
        server = Server(target, self.directory, properties, {"maxSessionTimeout": 600_000})
        server.log = self.context.work / f"round-{number}.log"
        return server

    def opened(self, title, server):
        """The directory is what the last holder left."""
        zxid = server.zxid().removeprefix("0x")
        self.check(f"{title}: opens at the last zxid", zxid == self.inspected.zxid, f"{zxid}, not {self.inspected.zxid}")
        same(self.check, f"{title}: every znode is there, with its stat and ACL", self.inspected.znodes, self.dump(server))
        # The first is closed, so that a later holder finds it gone; the others stay.
        sessions = sorted(self.sessions)
        arguments = [f"{session}:{self.sessions[session]}" for session in sessions]
        done = run_program(java(self.classes, "Attach", server.address, *arguments, properties=UTF8), 120)
        found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        expected = {session: self.inspected.sessions.get(session) for session in sessions}
        same(
            self.check,
            f"{title}: all of the {len(sessions)} sessions live on, with their ephemerals",
            [f"{session} {expected[session]}" for session in sessions],
            [f"{session} {found.get(session)}" for session in sessions],
        )
        del self.sessions[sessions[0]]
        mismatches = re.search(r"^zk_digest_mismatches_count\s+(\d+)", server.four_letter("mntr"), re.M)
        self.check(f"{title}: no digest differs", mismatches and mismatches.group(1) == "0", mismatches)

    def fill(self, title, server, number, count):
        command = java(self.classes, "Fill", server.address, number, count, self.acknowledged, properties=UTF8)
        done = run_program(command, 180)
        self.remember(done.stdout)
        self.check(f"{title}: {count} znodes are written", done.returncode == 0, done.stdout[-2000:])

    def load(self, title, server, number):
        """Kills the server while a client writes, some time after its first writes."""
        command = java(self.classes, "Fill", server.address, 100 + number, 10**9, self.acknowledged, properties=UTF8)
        before = self.acknowledged.stat().st_size
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        deadline = time.monotonic() + 60
        while self.acknowledged.stat().st_size < before + 40_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        server.kill()
        stdout, _ = client.communicate(timeout=60)
        self.remember(stdout)
        self.check(f"{title}: is killed while a client writes", client.returncode == 4, stdout[-2000:])

    def remember(self, stdout):
        for line in stdout.splitlines():
            if line.startswith("session "):
                _, session, password = line.split()
                self.sessions[session] = password

    def dump(self, server):
        done = run_program(java(self.classes, "Dump", server.address, properties=UTF8), 120)
        if done.returncode != 0:
            raise RuntimeError(f"the dump ended with {done.returncode}:\n{done.stdout[-2000:]}")
        return done.stdout.splitlines()

    def inspect(self, title, dump):
        """Reads a copy of the directory with ZooKeeper's own code."""
        copy = self.context.work / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.directory / "data", copy)
        done = run_program(java(self.classes, "Inspect", copy, properties=UTF8), 120, stderr=subprocess.PIPE)
        self.check(f"{title}: ZooKeeper's code reads the directory, and no digest differs", done.returncode == 0, done.stderr[-2000:])
        before = self.inspected.owners if self.inspected else {}
        self.inspected = Inspected(done.stdout)
        print(f"      {title}: {len(self.inspected.znodes)} znodes, zxid 0x{self.inspected.zxid}, {self.inspected.replayed}, {files(copy)}")
        if dump is not None:
            same(self.check, f"{title}: it reads every znode as the client did", dump, self.inspected.znodes)
        names = {path(line) for line in self.inspected.znodes}
        asked = self.acknowledged.read_text(encoding="utf-8").splitlines()
        lost = [name for name in asked if name not in names and name not in self.departed]
        self.check(f"{title}: nothing acknowledged is lost", not lost, f"{len(lost)} of {len(asked)}: {lost[:10]}")
        missing = self.sessions.keys() - self.inspected.sessions.keys()
        self.check(f"{title}: no session is lost", not missing, missing)
        changed = {
            name: (owner, self.inspected.owners.get(name))
            for name, owner in before.items()
            if name in names and self.inspected.owners.get(name) != owner
        }
        self.check(f"{title}: {len(before)} containers and TTL znodes are what they were", not changed, changed)
        # The ephemerals of the session that the next holder closes.
        _, _, listed = self.inspected.sessions[min(self.sessions)].partition(" ")
        self.departed |= set(listed.strip("[]").split(", "))


class Inspected:
    """What Inspect printed."""

    def __init__(self, text):
        self.znodes, self.owners, self.sessions = [], {}, {}
        self.zxid = self.digest = self.replayed = ""
        for line in text.splitlines():
            key, _, rest = line.partition(" ")
            if key == "#session":
                session, _, rest = rest.partition(" ")
                self.sessions[session] = rest
            elif key == "#owner":
                name, _, owner = rest.rpartition(" ")
                self.owners[name] = owner
            elif key in ("#zxid", "#digest", "#replayed"):
                setattr(self, key[1:], rest)
            else:
                self.znodes.append(line)


def path(line):
    """Whose line this is."""
    return line.split(" data=")[0]


def same(check, name, expected, found):
    """One check that two dumps are equal."""
    if check(name, expected == found, "the first differences:"):
        return
    for line in list(difflib.unified_diff(expected, found, lineterm="", n=0))[:20]:
        print(f"      | {line[:500]}")


def files(directory):
    names = sorted(path.name for path in (directory / "version-2").iterdir())
    logs = sum(name.startswith("log.") for name in names)
    return f"{logs} logs, {len(names) - logs} snapshots"


def run(context):
    relay = Relay(context)
    for number, (holder, count, compression, end) in enumerate(ROUNDS, 1):
        relay.round(number, holder, count, compression, end)
    relay.reap(len(ROUNDS) + 1)
