"""The C client of Debian's zookeeper-bin, replaying a session recorded on Apache ZooKeeper 3.8.0."""

from replay import Golden, Mask, Program

CLI = "/usr/lib/zookeeper/bin/cli_mt"


def run(context):
    with context.server() as server:
        golden = Golden(context, context.source / "session.golden")
        mask = Mask(zxid=r"(\b[cmp]zxid ?= ?)([0-9a-f]+)", session=r"(ephemeralOwner = )[1-9a-f][0-9a-f]*")
        # Line by line although its output is a pipe, and from both streams into one.
        command = ["stdbuf", "-oL", "-eL", CLI, "-h", server.address]
        with Program(command, merged=True) as program:
            replay(context, golden, mask, program)
        golden.compare()


def replay(context, golden, mask, program):
    lines = program.take_until(lambda line: line.startswith("Got a new session id"), "the start")
    started = any("SESSION_EVENT state = CONNECTED_STATE" in line for _, line in lines)
    context.check("the session starts", started, lines)
    for number, command in enumerate(commands(context)):
        # An answer to a later request ends what came before, events included: the client takes
        # both from one queue.
        sentinel = f"/sentinel-{number}"
        program.send(command)
        program.send(f"als {sentinel}")
        lines = program.take_until(lambda line: line.startswith(f"{sentinel}: rc"), command)
        lines = [mask.line(line) for _, line in lines if shown(line, sentinel)]
        golden.add(command, in_order(lines) if "ls" in command else lines)
    program.send("quit")
    _, code = program.end()
    context.check("the program ends", code == 0, code)


def commands(context):
    lines = (context.source / "session.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def shown(line, sentinel):
    """What the server decided: neither our sentinel nor how long it took."""
    return line.strip() and sentinel not in line and not line.startswith("time = ")


def in_order(lines):
    """A listing with its children sorted: the server gives them in no order."""
    children = sorted(line for line in lines if line.startswith("\t") and "=" not in line)
    return [children.pop(0) if line.startswith("\t") and "=" not in line else line for line in lines]
