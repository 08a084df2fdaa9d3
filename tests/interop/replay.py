"""Replays command-line sessions and compares them with what they gave on Apache ZooKeeper 3.8.

A session is a list of commands, fed one by one to a program that reads its standard input. What
each command gave is recorded as

    $ create -e /a/e1 x            the command
    2 Created /a/e1                a line on standard error (1: on standard output)
    ! … type:NodeCreated path:/a   an event, wherever among the lines it came

with times, zxids and session ids masked. `UPDATE=1 TARGET=zookeeper tests/interop/run SUITE`
records anew; the difference is then read like code.
"""

import difflib
import os
import re
import selectors
import signal
import subprocess
import time

# How long a command may take to answer, and its events to come.
DEADLINE_S = 20
# How long a recording waits for events that a command may cause.
GRACE_S = 0.4


class Mask:
    """Hides what differs between two runs, and keeps what must not: equal stays equal.

    Each zxid becomes <zxid N>, numbered in order of appearance in the whole session.
    """

    DATE = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} +\d+ [\d:]{8} (?:[A-Z]+ )?(?!1970)\d{4}")

    def __init__(self, zxid, session):
        self.zxid = re.compile(zxid)
        self.session = re.compile(session)
        self.zxids = {}

    def line(self, text):
        text = self.DATE.sub("<time>", text)
        text = self.zxid.sub(self.number, text)
        return self.session.sub(r"\1<session>", text)

    def number(self, match):
        value = match.group(2)
        if int(value, 16) == 0:
            return match.group(0)
        return f"{match.group(1)}<zxid {self.zxids.setdefault(value, len(self.zxids) + 1)}>"


class Program:
    """A running program, its output taken line by line."""

    def __init__(self, command, merged=False):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            start_new_session=True,
        )
        self.selector = selectors.DefaultSelector()
        self.partial = {}
        for number, stream in ((1, self.process.stdout), (2, self.process.stderr)):
            if stream:
                os.set_blocking(stream.fileno(), False)
                self.selector.register(stream, selectors.EVENT_READ, number)
                self.partial[number] = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def send(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def take(self, seconds):
        """The lines that come within some time, as (stream, line); returns at the first ones."""
        lines = []
        for key, _ in self.selector.select(seconds):
            chunk = os.read(key.fd, 1 << 16)
            if not chunk:
                self.selector.unregister(key.fileobj)
            *whole, self.partial[key.data] = (self.partial[key.data] + chunk).split(b"\n")
            lines += [(key.data, line.decode(errors="replace")) for line in whole]
        return lines

    def take_until(self, done, what):
        """The lines up to the one that `done` accepts, and all that had come by then."""
        lines = []
        deadline = time.monotonic() + DEADLINE_S
        while not any(done(line) for _, line in lines):
            if time.monotonic() > deadline or not self.selector.get_map():
                raise RuntimeError(f"no answer to '{what}'; so far: {lines[-20:]}")
            lines += self.take(0.2)
        while more := self.take(0):
            lines += more
        return lines

    def end(self):
        """What comes until the program ends, and its exit code."""
        self.process.stdin.close()
        lines = []
        deadline = time.monotonic() + DEADLINE_S
        while self.selector.get_map() and time.monotonic() < deadline:
            lines += self.take(0.2)
        lines += [(number, part.decode()) for number, part in self.partial.items() if part]
        if self.selector.get_map():
            raise RuntimeError(f"the program does not end; so far: {lines[-20:]}")
        return lines, self.process.wait()


class Golden:
    """What a session gave when it was recorded, command by command."""

    def __init__(self, context, path):
        self.context = context
        self.path = path
        self.updating = os.environ.get("UPDATE") == "1"
        if self.updating and context.target != "zookeeper":
            raise RuntimeError("only Apache ZooKeeper is recorded: TARGET=zookeeper")
        self.header = []
        self.recorded = []
        if path.exists():
            for line in path.read_text().splitlines():
                if line.startswith("$ "):
                    self.recorded.append([line])
                elif self.recorded:
                    self.recorded[-1].append(line)
                else:
                    self.header.append(line)
        self.replayed = []

    def events(self, command):
        """How many events the next command gave."""
        position = len(self.replayed)
        if self.updating or position >= len(self.recorded):
            return None
        if self.recorded[position][0] != f"$ {command}":
            return None
        return sum(line.startswith("! ") for line in self.recorded[position])

    def add(self, command, lines):
        self.replayed.append([f"$ {command}", *(line.rstrip() for line in lines)])

    def compare(self):
        """One check per command; with UPDATE=1, a new recording."""
        if self.updating:
            text = "".join(f"{line}\n" for line in self.header)
            text += "".join(f"{line}\n" for group in self.replayed for line in group)
            self.path.write_text(text)
            self.context.check(f"{self.path.name} is recorded", True)
            return
        commands = [group[0] for group in self.replayed]
        self.context.check(
            f"{self.path.name} has these commands",
            commands == [group[0] for group in self.recorded],
            "record anew",
        )
        for position, (expected, found) in enumerate(zip(self.recorded, self.replayed), 1):
            detail = difflib.unified_diff(expected, found, "recorded", "replayed", lineterm="", n=3)
            self.context.check(f"{position} {found[0]}", expected == found, "\n".join(detail))
