"""Debian's zkCli.sh, replaying sessions that were recorded on Apache ZooKeeper 3.8.0.

session.txt is one interactive session, after the sample of most commands and errors that the
specification collected; one-shot.txt holds runs of a single command, with their exit codes.
"""

import os
import time

from harness import run as run_program
from replay import GRACE_S, Golden, Mask, Program

ZKCLI = "/usr/share/zookeeper/bin/zkCli.sh"
# A command that is answered by the client alone, and marks the end of what came before.
SENTINEL = "redo 999999"
SENTINEL_ANSWER = "Command index out of range"
# Two lines of the client's own, each in a block of its own among the results.
WATCHER, EVENT = "WATCHER::", "WatchedEvent "


def run(context):
    os.environ["CLIENT_JVMFLAGS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Duser.timezone=UTC"
    properties = {"zookeeper.enforceQuota": "true"}
    with context.server("interactive", properties=properties) as server:
        interactive(context, server)
    with context.server("one-shot", properties=properties) as server:
        one_shot(context, server)


def commands(path):
    lines = path.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def mask():
    return Mask(zxid=r"(\b[cmp]Zxid = )0x([0-9a-f]+)", session=r"(ephemeralOwner = )0x[1-9a-f][0-9a-f]*")


def interactive(context, server):
    golden = Golden(context, context.source / "session.golden")
    with Program([ZKCLI, "-server", server.address]) as program:
        replay(context, golden, mask(), program)
    golden.compare()


def replay(context, golden, masks, program):
    program.send(SENTINEL)
    program.take_until(lambda line: line.endswith(SENTINEL_ANSWER), "the start of zkCli.sh")
    events = []
    wait_for_events(program, events, 1)
    context.check("the session starts", events == ["state:SyncConnected type:None path:null"], events)
    for command in commands(context.source / "session.txt"):
        program.send(command)
        program.send(SENTINEL)
        lines = program.take_until(lambda line: line.endswith(SENTINEL_ANSWER), command)
        events = []
        results = split(lines, events)
        results += wait_for_events(program, events, golden.events(command))
        golden.add(command, record(results, events, masks))
    program.send("quit")
    lines, _ = program.end()
    events = []
    split(lines, events)
    context.check("the session is closed", events == ["state:Closed type:None path:null"], events)


def wait_for_events(program, events, count):
    """Takes lines until so many events have come; how many there are is found out by waiting."""
    results = []
    deadline = time.monotonic() + (GRACE_S if count is None else 10)
    while (count is None or len(events) < count) and time.monotonic() < deadline:
        results += split(program.take(0.1), events)
    return results


def split(lines, events):
    """The results among the lines; events go to `events`."""
    results = []
    for number, line in lines:
        if line.startswith(EVENT):
            events.append(line.removeprefix(EVENT).strip())
        elif line.endswith(SENTINEL_ANSWER):
            results.append((number, line.removesuffix(SENTINEL_ANSWER)))
        elif line != WATCHER and not line.startswith("SLF4J: "):
            results.append((number, line))
    return [(number, line) for number, line in results if line.strip()]


def record(results, events, masks):
    """In one order whatever the streams' race: standard output, standard error, events."""
    ordered = sorted(results, key=lambda result: result[0])
    return [f"{number} {masks.line(line)}" for number, line in ordered] + [
        f"! {event}" for event in events
    ]


def one_shot(context, server):
    golden = Golden(context, context.source / "one-shot.golden")
    masks = mask()
    for command in commands(context.source / "one-shot.txt"):
        arguments = [ZKCLI, "-server", server.address, "-waitforconnection", *command.split()]
        done = run_program(arguments, 60, stderr=-1)
        lines = [(1, line) for line in done.stdout.splitlines()]
        lines += [(2, line) for line in done.stderr.splitlines()]
        events = []
        results = split(lines, events)
        # The line that names the server's address, and the client's build.
        results = [
            (number, line)
            for number, line in results
            if not line.startswith(("Connecting to ", "ZooKeeper CLI version: "))
        ]
        # The closing event is printed or not, as the program ends sooner or later.
        events = [event for event in events if not event.startswith("state:Closed")]
        golden.add(command, record(results, events, masks) + [f"= {done.returncode}"])
    golden.compare()
