"""kazoo's own tests, as its package on PyPI ships them, unmodified.

They start servers themselves, by running `java … QuorumPeerMain zoo.cfg`; our stand-in for java
on the PATH starts the target instead. What cannot pass is listed in expected-failures.txt.
"""

import os
import shutil
import xml.etree.ElementTree as ElementTree

from harness import CLASS_PATH, HERE, free_port, virtual_environment
from harness import run as run_program

# All of the tests take four minutes against Apache ZooKeeper.
TIMEOUT_S = 900
# A test that is known to hang is given so long to prove it.
HANG_S = 40


class Mode:
    """Which servers the tests are given, and which tests are run then."""

    def __init__(self, name, size, observers_from, tests_min, leaves_out=()):
        self.name = name
        self.size = size
        # The number of the first server that is an observer.
        self.observers_from = observers_from
        # How many tests there are; fewer means that a file of tests was not even read.
        self.tests_min = tests_min
        # What is in the names of tests that are left out.
        self.leaves_out = leaves_out

    def runs(self, test):
        return not any(word in test.lower() for word in self.leaves_out)


# What a client does with TLS, SASL and its handlers of events does not depend on the number of servers.
ON_ONE_SERVER = ("sasl", "ssl", "eventlet", "gevent")
MODES = [
    # The number of tests that kazoo 2.11.0 has.
    Mode("one", 1, -1, 490),
    Mode("three", 3, -1, 300, ON_ONE_SERVER),
    # Three that vote, and an observer.
    Mode("observer", 4, 4, 300, ON_ONE_SERVER),
]


def run(context):
    python = virtual_environment(context.source / "requirements.txt")
    with context.server() as server:
        version = server.version()
    wanted = os.environ.get("KAZOO_MODES", "one three observer").split()
    for mode in MODES:
        if mode.name in wanted:
            run_mode(context, python, version, mode)


def run_mode(context, python, version, mode):
    listed = expected(context, mode)
    hanging = [test for test, (outcome, _) in listed.items() if outcome == "hangs"]
    seen = {test: run_alone(context, python, version, mode, test) for test in hanging}
    for test, outcome, said in outcomes(run_tests(context, python, version, mode, hanging)):
        # A test that fails and then cannot clean up is reported twice.
        if seen.get(test, ("passes",))[0] == "passes":
            seen[test] = (outcome, said)
    passed = 0
    for test, (outcome, said) in seen.items():
        wanted, reason = listed.get(test, ("passes", ""))
        if outcome != wanted:
            detail = f"it {outcome}, and is listed as: {wanted}, {reason}" if reason else ""
            detail += "\n" + "\n".join(said.splitlines()[-40:])
            context.check(f"{mode.name}: {test} {wanted}", False, detail)
        elif outcome == "passes":
            passed += 1
        else:
            print(f"known kazoo: {mode.name}: {test} {outcome}: {reason}", flush=True)
    for test in listed.keys() - seen.keys():
        context.check(f"{mode.name}: {test} {listed[test][0]}", False, "there is no such test")
    context.check(
        f"{mode.name}: all of its tests have run ({len(seen)})",
        len(seen) >= mode.tests_min,
        sorted(seen),
    )
    context.report.passed += passed
    print(f"ok    kazoo: {mode.name}: {passed} of kazoo's tests pass", flush=True)


def run_tests(context, python, version, mode, hanging):
    """Runs the tests but for those that hang; the path of their result in JUnit's XML."""
    result = context.work / f"result-{mode.name}.xml"
    others = " and ".join(f"not {test}" for test in [*map(expression, hanging), *mode.leaves_out])
    arguments = [f"--junit-xml={result}", *(["-k", others] if others else [])]
    done = pytest(context, python, version, mode, TIMEOUT_S, arguments)
    (context.work / f"pytest-{mode.name}.log").write_text(done.stdout)
    if done.returncode is None or not result.exists():
        reason = "ran past its time" if done.returncode is None else f"ended with {done.returncode}"
        raise RuntimeError(f"pytest {reason}:\n" + "\n".join(done.stdout.splitlines()[-40:]))
    return result


def run_alone(context, python, version, mode, test):
    """Runs one test that is known to hang, and ends it: its outcome, and what it said."""
    done = pytest(context, python, version, mode, HANG_S, ["-k", expression(test)])
    if done.returncode is None:
        return "hangs", done.stdout
    return ("passes" if done.returncode == 0 else "fails"), done.stdout


def expression(test):
    """What pytest -k takes for one test: the name of its class and its own."""
    _, group, name = test.split(".")
    return f"({group} and {name})"


def pytest(context, python, version, mode, timeout_s, arguments):
    temporary = context.work / f"tmp-{len(list(context.work.glob('tmp-*')))}"
    temporary.mkdir()
    # kazoo.testing reads these; CI=true makes it check that the server is of the version named.
    environment = {
        **os.environ,
        "PATH": f"{HERE / 'stand-in'}:{os.environ['PATH']}",
        "INTEROP_JAVA": shutil.which("java"),
        "TMPDIR": str(temporary),
        "CI": "true",
        "ZOOKEEPER_VERSION": version,
        "ZOOKEEPER_CLASSPATH": CLASS_PATH,
        "ZOOKEEPER_CLUSTER_SIZE": str(mode.size),
        "ZOOKEEPER_OBSERVER_START_ID": str(mode.observers_from),
        "ZOOKEEPER_PORT_OFFSET": str(free_port()),
    }
    command = [str(python), "-m", "pytest", "-q", "--timeout=120", "-p", "no:cacheprovider"]
    command += ["--color=no", *arguments, "--pyargs", "kazoo.tests"]
    return run_program(command, timeout_s, env=environment, cwd=context.work)


def expected(context, mode):
    """The listed tests that concern this target in this mode: by name, outcome and reason."""
    listed = {}
    for line in (context.source / "expected-failures.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            where, outcome, test, reason = line.split(maxsplit=3)
            target, _, only = where.partition("/")
            assert target in ("any", "ringkeeper") and outcome in ("fails", "hangs", "skips"), line
            assert only in ("", *(mode.name for mode in MODES)), line
            if target in ("any", context.target) and only in ("", mode.name) and mode.runs(test):
                listed[test] = (outcome, reason)
    return listed


def outcomes(result):
    """Each test's outcome, and what it said."""
    for case in ElementTree.parse(result).iter("testcase"):
        test = f"{case.get('classname')}.{case.get('name')}".removeprefix("kazoo.tests.")
        outcome, said = "passes", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, said = "fails", child.text or child.get("message") or ""
                break
            if child.tag == "skipped":
                outcome, said = "skips", child.get("message") or ""
        yield test, outcome, said
