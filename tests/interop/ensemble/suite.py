"""Servers of the target and of Apache ZooKeeper in one ensemble, with each version of the latter.

`meet` has one ensemble of three and two observers, in which each leads the other; every way of
bringing a learner to its leader's history, in both directions; and sessions that move. `swap` takes
an ensemble from Java to ours and back, server by server, while clients write and nothing that was
acknowledged may be missing. `local` has sessions that only their server knows, until they own
something, and a server that is read without a leader.

With TARGET=zookeeper, all servers are Apache ZooKeeper.
"""

import contextlib
import os
import site
import sys
import threading
import time
from pathlib import Path

from harness import HERE, virtual_environment

python = virtual_environment(HERE / "kazoo" / "requirements.txt")
for packages in (python.parent.parent / "lib").glob("python3.*/site-packages"):
    site.addsitedir(str(packages))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from kazoo.exceptions import (  # noqa: E402
    BadVersionError,
    KazooException,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
)
from kazoo.security import READ_ACL_UNSAFE  # noqa: E402
from members import (  # noqa: E402
    DIGESTS_DIFFER,
    Ensemble,
    Jars,
    RawSession,
    differences,
    tree,
    until,
)

# More than a leader keeps in memory, so that a learner that lacks all of them needs a snapshot.
BEYOND_MEMORY = 700
RAW_TIMEOUT_MS = 3000


def run(context):
    wanted = os.environ.get("ENSEMBLE_VERSIONS", "3.8 3.9.3").split()
    for jars in Jars.every():
        if jars.version not in wanted:
            continue
        started = time.monotonic()
        Meeting(context, jars).run()
        Swap(context, jars).run()
        Local(context, jars).run()
        print(f"      Apache ZooKeeper {jars.version}: {time.monotonic() - started:.0f} s", flush=True)


class Scenario:
    """An ensemble with one version of Java, and checks with that version's name."""

    participants = (1, 2, 3)
    observers = ()
    settings = {}
    properties = {}

    def __init__(self, context, jars):
        self.context = context
        self.version = jars.version
        self.ensemble = Ensemble(
            context,
            f"{self.title}-{jars.version}",
            jars,
            self.participants,
            self.observers,
            self.settings,
            self.properties,
        )

    def run(self):
        try:
            self.play()
            self.digests_agree()
        except BaseException:
            self.ensemble.print_tails()
            raise
        finally:
            self.ensemble.close()

    def check(self, name, ok, detail=""):
        detail = detail if isinstance(detail, str) else "\n".join(map(str, detail[:20]))
        return self.context.check(f"{self.version} {self.title}: {name}", ok, detail)

    def digests_agree(self):
        """Java compares its tree with each transaction's digest, whoever led."""
        differ = [
            line
            for id in self.ensemble.ports
            for line in (self.ensemble.folder / f"server-{id}" / "server.log")
            .read_text(errors="replace")
            .splitlines()
            if DIGESTS_DIFFER in line
        ]
        self.check("no server had another digest than its leader", not differ, differ)

    def same_trees(self, when):
        clients = {id: self.ensemble.client(id) for id in self.ensemble.servers}
        try:
            # What the clients' own sessions are is in no tree; the trees are read at one zxid.
            trees = {id: tree(client) for id, client in clients.items()}
        finally:
            for client in clients.values():
                client.stop()
        told = differences(trees)
        count = len(next(iter(trees.values())))
        self.check(f"{count} znodes are the same on all servers {when}", not told and count > 5, told)


class Meeting(Scenario):
    """Server 3 of Java leads first, then server 2, which is ours, then server 3 again."""

    title = "meet"
    observers = (4, 5)

    def play(self):
        ensemble = self.ensemble
        # The highest number of the first two leads.
        ensemble.launch(3, "java")
        ensemble.launch(1, "java")
        until("server 3 leads", lambda: ensemble.mode(3) == "leader")
        for id, kind in ((2, "ours"), (4, "ours"), (5, "java")):
            ensemble.launch(id, kind)
        self.led_by(3)
        self.everything("java-leads")
        self.moves(2, 1)
        self.brought_by("DIFF", 2)
        self.brought_by("SNAP", 2)
        self.expires("java", 2)
        self.same_trees("while Java leads")

        self.cut_off(3, new=2)
        self.everything("we-lead")
        self.moves(1, 2)
        self.brought_by("DIFF", 1)
        self.brought_by("SNAP", 1)
        self.expires("ours", 1)
        self.same_trees("while we lead")

        self.cut_off(2, new=3)
        self.everything("java-leads-again")
        self.same_trees("at the end")

    def led_by(self, wanted):
        leader = self.ensemble.leader()
        names = ", ".join(self.ensemble.name(id) for id in sorted(self.ensemble.servers))
        self.check(f"server {wanted} leads: {names}", leader == wanted)

    def everything(self, title):
        """Every operation through every server, seen through every other."""
        clients = {id: self.ensemble.client(id) for id in self.ensemble.servers}
        try:
            clients[1].create(f"/{title}")
            for id, client in clients.items():
                port = self.ensemble.ports[id][0]
                others = {other: clients[other] for other in clients if other != id}
                told = operations(f"/{title}/{id}", client, port, others)
                self.check(f"every operation through {self.ensemble.name(id)}", not told, told)
            self.same_trees(f"with ephemerals of them all, {title}")
        finally:
            for client in clients.values():
                client.stop()
        with_owner = self.ensemble.client(1)
        with_owner.sync("/")
        left = [
            path
            for path in (f"/{title}/{child}" for child in with_owner.get_children(f"/{title}"))
            if with_owner.exists(path).ephemeralOwner
        ]
        self.check(f"no ephemeral is left once its client has closed, {title}", not left, left)
        with_owner.stop()

    def brought_by(self, operation, id):
        """A follower that was away, or has lost all, and comes back."""
        ensemble = self.ensemble
        leader, kind = ensemble.leader(), ensemble.kinds[id]
        ensemble.stop(id)
        client = ensemble.client(leader)
        if operation == "SNAP":
            ensemble.wipe(id)
        count = BEYOND_MEMORY if operation == "SNAP" else 20
        parent = client.create(f"/{operation.lower()}-", sequence=True)
        for one in [client.create_async(f"{parent}/{n}", b"while away") for n in range(count)]:
            one.get()
        client.stop()
        self.joins_by(operation, leader, id, kind)

    def joins_by(self, operation, leader, id, kind):
        ensemble = self.ensemble
        mark = len(ensemble.log(leader))
        ensemble.start(id, kind)
        sent, taken = ensemble.synchronized(leader, id, mark)
        self.check(
            f"{ensemble.name(leader)} brings {ensemble.name(id)} by {operation}",
            operation in sent and taken == {operation},
            f"the leader tells of {sent}, the learner of {taken}",
        )

    def cut_off(self, old, new):
        """The leader logs what nobody else gets, and has to forget it as a follower of another."""
        ensemble = self.ensemble
        kind, others = ensemble.kinds[old], [id for id in self.participants if id != old]
        # This session must not expire soon: see below.
        client = ensemble.client(old, timeout=100)
        # Of two that have the same, the one with the higher number leads.
        until(
            "all that vote have the same",
            lambda: len({ensemble.servers[id].zxid() for id in self.participants}) == 1,
        )
        for id in others:
            ensemble.pause(id)
        marker = f"/unheard-of-{old}"
        asked = client.create_async(marker, b"by nobody else")
        until(
            "the leader has logged what it was asked for",
            lambda: any(
                marker.encode() in log.read_bytes()
                for log in (ensemble.folder / f"server-{old}" / "data").glob("version-2/log.*")
            ),
        )
        self.check(f"what only server {old} has is not acknowledged", not asked.ready())
        for id in (old, *others):
            kinds = ensemble.kinds[id]
            ensemble.kill(id)
            if id != old:
                ensemble.launch(id, kinds)
        client.stop()
        client.close()
        until(f"server {new} leads", lambda: ensemble.mode(new) == "leader")
        # A leader that had transactions in its new epoch would send a snapshot.
        self.joins_by("TRUNC", new, old, kind)
        self.led_by(new)
        client = ensemble.client(new)
        client.create(f"/instead-{old}", b"by the others")
        at_old = ensemble.client(old)
        at_old.sync("/")
        self.check(
            f"server {old} has forgotten what only it had, and has what came instead",
            not at_old.exists(marker) and at_old.exists(f"/instead-{old}"),
        )
        at_old.stop()
        client.stop()

    def moves(self, start, end):
        """Sessions whose server goes, to one of the other kind: a client's, and one by hand."""
        ensemble = self.ensemble
        told = f"from {ensemble.name(start)} to {ensemble.name(end)}"
        path, kind = f"/moves-{start}-{end}-{ensemble.leader()}", ensemble.kinds[start]
        other = ensemble.client(ensemble.leader())
        other.create(path)
        client = ensemble.client(start, end)
        lost = []
        client.add_listener(lambda state: lost.append(state) if state == "LOST" else None)
        session = client.client_id[0]
        client.create(f"{path}/client", ephemeral=True)
        raw = RawSession(20_000)
        raw.attach(ensemble.ports[start][0])
        raw.create_ephemeral(f"{path}/raw")
        raw.watch(path)
        raw_id = raw.id
        ensemble.stop(start)
        client.retry(client.create, f"{path}/after")
        stat = client.exists(f"{path}/client")
        self.check(
            f"a client goes {told}, with its session and its ephemeral",
            client.client_id[0] == session
            and not lost
            and stat is not None
            and stat.ephemeralOwner & (2**64 - 1) == session & (2**64 - 1),
            f"{client.client_id[0]:#x} was {session:#x}; lost {lost}; {stat}",
        )
        is_known = raw.attach(ensemble.ports[end][0])
        raw.set_watches([path])
        other.set(path, b"an event")
        event = raw.next_event()
        owner = other.exists(f"{path}/raw").ephemeralOwner
        self.check(
            f"a session with a watch goes {told}",
            is_known and raw.id == raw_id == owner and event == path,
            f"known {is_known}, {raw.id:#x} was {raw_id:#x}, owner {owner:#x}, event {event}",
        )
        ensemble.start(start, kind)
        # Where it was at first, it may go again.
        is_known = raw.attach(ensemble.ports[start][0])
        self.check(f"and back {told}", is_known and raw.id == raw_id)
        stale = RawSession(20_000)
        stale.id, stale.password = raw_id, b"0123456789abcdef"
        self.check(
            f"nobody takes it over at {ensemble.name(end)} without its password",
            not stale.attach(ensemble.ports[end][0]),
        )
        stale.drop()
        raw.close()
        client.stop()
        other.stop()

    def expires(self, leads, at):
        """A session whose client is gone, at a follower that the leader is not of the kind of."""
        ensemble = self.ensemble
        leader = ensemble.leader()
        path = f"/expires-{leads}"
        raw = RawSession(RAW_TIMEOUT_MS)
        raw.attach(ensemble.ports[at][0])
        raw.create_ephemeral(path)
        raw.drop()
        dropped = time.monotonic()
        client = ensemble.client(leader)
        stays = client.exists(path) is not None
        until("the session has expired", lambda: client.exists(path) is None)
        waited_ms = (time.monotonic() - dropped) * 1000
        is_dead = not raw.attach(ensemble.ports[at][0])
        client.stop()
        self.check(
            f"a session at {ensemble.name(at)} expires by {ensemble.name(leader)}",
            stays and is_dead and RAW_TIMEOUT_MS * 0.8 < waited_ms < RAW_TIMEOUT_MS * 4,
            f"stays {stays}, dead {is_dead}, after {waited_ms:.0f} of {RAW_TIMEOUT_MS} ms",
        )
        raw.drop()


def operations(path, client, port, others):
    """What each operation through one server gives; a list of what is wrong. `others` are clients of
    the other servers, by number."""
    told = []

    def expect(what, ok):
        if not ok:
            told.append(what)

    def fails(what, error, ask):
        try:
            ask()
        except error:
            return
        except KazooException as other:
            told.append(f"{what}: {type(other).__name__}")
            return
        told.append(f"{what} is done")

    client.create(path, b"first")
    expect("set", client.set(path, b"second").version == 1)
    expect("set of a version", client.set(path, b"third", version=1).version == 2)
    fails("set of another version", BadVersionError, lambda: client.set(path, b"", version=7))
    fails("create of what exists", NodeExistsError, lambda: client.create(path))
    client.create(f"{path}/gone")
    fails("delete of a parent", NotEmptyError, lambda: client.delete(path))
    client.delete(f"{path}/gone")
    fails("delete of what is gone", NoNodeError, lambda: client.delete(f"{path}/gone"))
    made = [client.create(f"{path}/n-", sequence=True)[-10:] for _ in range(3)]
    expect(f"sequence {made}", made == [f"{n:010}" for n in (1, 2, 3)])

    multi = client.transaction()
    multi.create(f"{path}/multi", b"m")
    multi.set_data(path, b"fourth", version=2)
    multi.check(path, 3)
    multi.delete(f"{path}/n-0000000001")
    done = multi.commit()
    expect(f"multi {done}", done[0] == f"{path}/multi" and done[1].version == 3)
    multi = client.transaction()
    multi.create(f"{path}/never")
    multi.delete(f"{path}/nothing")
    multi.create(f"{path}/never-either")
    done = [type(one) for one in multi.commit()]
    expect(f"failing multi {done}", done[:2] == [RolledBackError, NoNodeError])
    expect("a failing multi leaves something", client.exists(f"{path}/never") is None)

    # What these leave is in the trees that are compared.
    made, stat = client.create(f"{path}/with-stat", bytes(600_000), include_data=True)
    expect("create2", made == f"{path}/with-stat" and stat.dataLength == 600_000)
    stat = client.set_acls(f"{path}/with-stat", READ_ACL_UNSAFE)
    expect("setACL", stat.aversion == 1)
    raw = RawSession(20_000)
    raw.attach(port)
    expect("a container", raw.create_container(f"{path}/container") == 0)
    expect("a znode with a time to live", raw.create_with_ttl(f"{path}/ttl", 3_600_000) == 0)
    raw.close()

    client.create(f"{path}-ephemeral", b"e", ephemeral=True)
    owner = client.exists(f"{path}-ephemeral").ephemeralOwner & (2**64 - 1)
    expect("ephemeralOwner", owner == client.client_id[0] & (2**64 - 1))

    # Watches at all the others, on what changes through this one.
    events = []
    for id, other in others.items():
        other.sync(path)
        seen = [threading.Event() for _ in range(3)]
        other.get(path, watch=lambda _, seen=seen: seen[0].set())
        other.get_children(path, watch=lambda _, seen=seen: seen[1].set())
        other.exists(f"{path}-later", watch=lambda _, seen=seen: seen[2].set())
        events.append((id, other, seen))
    client.set(path, b"fifth")
    client.delete(f"{path}/multi")
    client.create(f"{path}-later")
    for id, other, seen in events:
        for what, event in zip(("data", "children", "exists"), seen):
            expect(f"{what} watch at server {id}", event.wait(20))
        other.sync(path)
        expect(f"data at server {id}", other.get(path)[0] == b"fifth")
    return told


class Swap(Scenario):
    """Java, ours, Java: on the same directories, one server at a time."""

    title = "swap"

    def play(self):
        ensemble = self.ensemble
        for id in self.participants:
            ensemble.launch(id, "java")
        ensemble.leader()
        # Each client begins at another server.
        load = Loads([Load(ensemble, ids) for ids in ((1, 2, 3), (2, 3, 1), (3, 1, 2))])
        steps = [(id, kind) for kind in ("ours", "java") for id in self.participants]
        for id, kind in steps:
            role = ensemble.mode(id)
            load.begin_step()
            ensemble.stop(id)
            ensemble.start(id, kind)
            leader = ensemble.leader()
            before = load.counts()
            until("writes go on", lambda: all(a > b + 20 for a, b in zip(load.counts(), before)))
            gap_s = load.gap_s()
            print(
                f"      {self.version} swap: server {id}, the {role}, is {kind} now,"
                f" led by {ensemble.name(leader)}: longest gap {gap_s:.2f} s,"
                f" {sum(load.counts())} writes acknowledged",
                flush=True,
            )
            with load.paused():
                self.same_trees(f"once server {id} is {kind}")
            wrong = load.missing_at(id)
            self.check(f"nothing acknowledged is missing once server {id} is {kind}", not wrong, wrong)
        load.end()
        for id in self.participants:
            wrong = load.missing_at(id)
            self.check(f"nothing acknowledged is missing at {ensemble.name(id)}", not wrong, wrong)
        dead = [one.told() for one in load.loads if not one.lives()]
        self.check(
            f"three sessions wrote {load.counts()} times, with their ephemerals, through all of it",
            not dead and min(load.counts()) > 150,
            dead,
        )
        print(f"      {self.version} swap: the longest gap is {load.longest_s():.2f} s", flush=True)
        load.close()


class Local(Scenario):
    """Server 3 of Java leads first, then server 2, which is ours and is left alone at the end."""

    title = "local"
    settings = {"localSessionsEnabled": "true", "localSessionsUpgradingEnabled": "true"}
    properties = {"readonlymode.enabled": "true"}

    def play(self):
        ensemble = self.ensemble
        for id, kind in ((3, "java"), (1, "java"), (2, "ours")):
            ensemble.launch(id, kind)
            if id != 3:
                self.are({3: "leader", id: "follower"})
        for at, other in ((2, 1), (1, 2), (2, 3)):
            self.upgrades(at, other)
        ensemble.stop(3)
        self.are({2: "leader", 1: "follower"})
        ensemble.launch(3, "java")
        self.are({2: "leader", 3: "follower"})
        for at, other in ((3, 1), (1, 2), (2, 3)):
            self.upgrades(at, other)
        self.same_trees("after all of that")
        self.is_read(2, (1, 3))

    def are(self, wanted):
        until(f"they are {wanted}", lambda: {id: self.ensemble.mode(id) for id in wanted} == wanted)

    def port(self, id):
        return self.ensemble.ports[id][0]

    def upgrades(self, at, other):
        ensemble = self.ensemble
        path = f"/local-{at}-{other}-{ensemble.leader()}"
        told = f"of {ensemble.name(at)}, led by {ensemble.name(ensemble.leader())},"
        client = ensemble.client(at)
        before = ensemble.servers[at].zxid()
        raw, thief = RawSession(20_000), RawSession(20_000)
        opened = raw.attach(self.port(at))
        after = ensemble.servers[at].zxid()
        thief.id, thief.password = raw.id, raw.password
        self.check(
            f"a local session {told} is no transaction, and unknown to {ensemble.name(other)}",
            opened and before == after and not thief.attach(self.port(other)),
            f"opened {opened}, zxid {before}, then {after}",
        )
        id, errors = raw.id, (raw.create(path), raw.create_ephemeral(f"{path}/mine"))
        plain, mine = client.exists(path), client.exists(f"{path}/mine")
        self.check(
            f"a local session {told} writes, and opens for all before it owns",
            errors == (0, 0) and mine.ephemeralOwner == id and mine.czxid == plain.czxid + 2,
            f"errors {errors}, session {id:#x}\n{plain}\n{mine}",
        )
        # A server that has not come so far yet takes nobody who has.
        until("the other is as far", lambda: ensemble.servers[other].zxid() == f"{raw.zxid:#x}")
        moved = raw.attach(self.port(other)) and raw.id == id
        raw.close()
        client.sync("/")
        gone = client.exists(f"{path}/mine") is None
        self.check(
            f"a session {told} that was local goes to {ensemble.name(other)}, and ends there",
            moved and gone,
            f"moved {moved}, gone {gone}",
        )
        for session in (raw, thief):
            session.drop()
        client.stop()

    def is_read(self, left, others):
        ensemble = self.ensemble
        known = RawSession(20_000, read_only=True)
        known.attach(self.port(left))
        known.create_ephemeral("/known")
        for id in others:
            ensemble.kill(id)
        ended = known.is_closed()
        until("it is read", lambda: ensemble.mode(left) == "read")
        words = ensemble.servers[left].four_letter("isro")
        writer, reader = RawSession(20_000), RawSession(20_000, read_only=True)
        answered = []
        for session in (writer, known):
            try:
                answered.append(session.attach(self.port(left)))
            except (RuntimeError, ConnectionError):
                answered.append("closed")
        opened = reader.attach(self.port(left))
        error = reader.create("/more")
        self.check(
            "a server without a leader is read, and by nobody with a session of the ensemble",
            ended
            and (words, answered, opened, error) == ("ro", ["closed", "closed"], True, -119)
            and reader.id >> 56 == left,
            f"ended {ended}, {words}, {answered}, {opened}, {reader.id:#x}, error {error}",
        )
        ensemble.launch(others[1], "java")
        ended = reader.is_closed()
        until("it has a role", lambda: ensemble.mode(left) in ("leader", "follower"))
        back = known.attach(self.port(left))
        error = known.create("/more")
        self.check(
            "with a leader all readers leave, and the ensemble's sessions come back",
            ended and back and error == 0,
            f"ended {ended}, back {back}, error {error}",
        )
        for session in (known, writer, reader):
            session.drop()


class Loads:
    """Several clients that write."""

    def __init__(self, loads):
        self.loads = loads

    def begin_step(self):
        for load in self.loads:
            load.gap_s = 0.0

    def counts(self):
        """How many writes each client was told are done."""
        return [load.count for load in self.loads]

    def gap_s(self):
        """The longest that a client of them waited for a write in this step."""
        return max(load.gap_s for load in self.loads)

    def longest_s(self):
        return max(load.longest_s for load in self.loads)

    @contextlib.contextmanager
    def paused(self):
        """While this is held, nothing is written."""
        with contextlib.ExitStack() as held:
            for load in self.loads:
                held.enter_context(load.turn)
            yield

    def missing_at(self, id):
        return [wrong for load in self.loads for wrong in load.missing_at(id)]

    def end(self):
        for load in self.loads:
            load.is_over = True
        for load in self.loads:
            load.thread.join(30)

    def close(self):
        for load in self.loads:
            load.client.stop()
            load.client.close()


class Load:
    """A client that writes all the time, one write after the other, and remembers what it was told."""

    REGISTERS = 20

    def __init__(self, ensemble, ids):
        self.ensemble = ensemble
        self.client = ensemble.client(*ids)
        self.session = self.client.client_id[0]
        self.states = []
        self.client.add_listener(self.states.append)
        self.root = self.client.create("/load-", sequence=True)
        self.client.create(f"{self.root}/owner", ephemeral=True)
        for register in range(self.REGISTERS):
            self.client.create(f"{self.root}/r{register}", b"-1")
        self.made = []
        self.gone = set()
        # By register: the last value that was acknowledged.
        self.values = dict.fromkeys(range(self.REGISTERS), -1)
        self.count = 0
        self.gap_s = self.longest_s = 0.0
        self.turn = threading.Lock()
        self.is_over = False
        self.thread = threading.Thread(target=self._write, daemon=True)
        self.thread.start()

    def _write(self):
        number = 0
        while not self.is_over:
            with self.turn:
                begun = time.monotonic()
                # A write that failed may be done. It is tried again until it is acknowledged, or a
                # znode is found to be there already.
                while not self.is_over and not self._attempt(number):
                    time.sleep(0.005)
                waited_s = time.monotonic() - begun
                self.gap_s = max(self.gap_s, waited_s)
                self.longest_s = max(self.longest_s, waited_s)
            number += 1
            # The servers need the processors, too.
            time.sleep(0.002)

    def _attempt(self, number):
        try:
            if number % 3 == 0:
                self.client.create(f"{self.root}/n{number}", str(number).encode())
                self.made.append(number)
            elif number % 3 == 1:
                register = number % self.REGISTERS
                self.client.set(f"{self.root}/r{register}", str(number).encode())
                self.values[register] = number
            elif number % 9 == 8:
                # What was made 30 writes ago.
                victim = number - 32
                self.gone.add(victim)
                if victim in self.made:
                    self.client.delete(f"{self.root}/n{victim}")
            else:
                self.client.set(self.root, str(number).encode())
        except NodeExistsError:
            self.made.append(number)
        except NoNodeError:
            if number % 9 != 8:
                raise
        except KazooException:
            return False
        self.count += 1
        return True

    def missing_at(self, id):
        """What was acknowledged before now and is not there."""
        with self.turn:
            made, values = set(self.made), dict(self.values)
        client = self.ensemble.client(id)
        client.sync("/")
        there = set(client.get_children(self.root))
        with self.turn:
            # What was deleted while this was read may be missing, too.
            gone = set(self.gone)
        wrong = [
            f"{self.root}/n{number} is missing"
            for number in made - gone
            if f"n{number}" not in there
        ]
        for register, value in values.items():
            found = int(client.get(f"{self.root}/r{register}")[0])
            if found < value:
                wrong.append(f"{self.root}/r{register} is {found}, not {value}")
        client.stop()
        return wrong

    def lives(self):
        stat = self.client.exists(f"{self.root}/owner")
        is_same = self.client.client_id[0] == self.session
        return is_same and "LOST" not in self.states and stat is not None

    def told(self):
        return f"{self.root}: session {self.session:#x}, {self.client.client_id}, {self.states}"
