"""kazoo's own tests, as its package on PyPI ships them, unmodified.

They start servers themselves, by running `java … QuorumPeerMain zoo.cfg`; our stand-in for java
on the PATH starts the target instead. What cannot pass is listed in expected-failures.txt.
"""

import hashlib
import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

from harness import CLASS_PATH, HERE, WORK, free_port
from harness import run as run_program

# All of the tests take four minutes against Apache ZooKeeper.
TIMEOUT_S = 900
# A test that is known to hang is given so long to prove it.
HANG_S = 40


def run(context):
    python = virtual_environment(context)
    with context.server() as server:
        version = server.version()
    listed = expected(context)
    hanging = [test for test, (outcome, _) in listed.items() if outcome == "hangs"]
    seen = {test: run_alone(context, python, version, test) for test in hanging}
    for test, outcome, said in outcomes(run_tests(context, python, version, hanging)):
        # A test that fails and then cannot clean up is reported twice.
        if seen.get(test, ("passes",))[0] == "passes":
            seen[test] = (outcome, said)
    passed = 0
    for test, (outcome, said) in seen.items():
        wanted, reason = listed.get(test, ("passes", ""))
        if outcome != wanted:
            detail = f"it {outcome}, and is listed as: {wanted}, {reason}" if reason else ""
            context.check(f"{test} {wanted}", False, detail + "\n" + "\n".join(said.splitlines()[-40:]))
        elif outcome == "passes":
            passed += 1
        else:
            print(f"known kazoo: {test} {outcome}: {reason}", flush=True)
    for test in listed.keys() - seen.keys():
        context.check(f"{test} {listed[test][0]}", False, "it is listed, and there is no such test")
    # The number kazoo 2.11.0 has; fewer means that a file of tests was not even read.
    context.check(f"all of kazoo's tests have run ({len(seen)})", len(seen) >= 490, sorted(seen))
    context.report.passed += passed
    print(f"ok    kazoo: {passed} of kazoo's tests pass", flush=True)


def run_tests(context, python, version, hanging):
    """Runs the tests but for those that hang; the path of their result in JUnit's XML."""
    result = context.work / "result.xml"
    others = " and ".join(f"not {expression(test)}" for test in hanging)
    done = pytest(context, python, version, TIMEOUT_S, [f"--junit-xml={result}", "-k", others])
    (context.work / "pytest.log").write_text(done.stdout)
    if done.returncode is None or not result.exists():
        reason = "ran past its time" if done.returncode is None else f"ended with {done.returncode}"
        raise RuntimeError(f"pytest {reason}:\n" + "\n".join(done.stdout.splitlines()[-40:]))
    return result


def run_alone(context, python, version, test):
    """Runs one test that is known to hang, and ends it: its outcome, and what it said."""
    done = pytest(context, python, version, HANG_S, ["-k", expression(test)])
    if done.returncode is None:
        return "hangs", done.stdout
    return ("passes" if done.returncode == 0 else "fails"), done.stdout


def expression(test):
    """What pytest -k takes for one test: the name of its class and its own."""
    _, group, name = test.split(".")
    return f"({group} and {name})"


def pytest(context, python, version, timeout_s, arguments):
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
        "ZOOKEEPER_CLUSTER_SIZE": "1",
        "ZOOKEEPER_PORT_OFFSET": str(free_port()),
    }
    command = [str(python), "-m", "pytest", "-q", "--timeout=120", "-p", "no:cacheprovider"]
    command += ["--color=no", *arguments, "--pyargs", "kazoo.tests"]
    return run_program(command, timeout_s, env=environment, cwd=context.work)


def virtual_environment(context):
    """The Python of a virtual environment with the requirements, made once per list of them."""
    requirements = context.source / "requirements.txt"
    name = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = WORK / f"venv-{name}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["/usr/bin/python3", "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = run_program([*pip, "-r", str(requirements)], 600)
        if done.returncode != 0:
            raise RuntimeError(f"pip ended with {done.returncode}:\n{done.stdout[-4000:]}")
        (folder / "complete").touch()
    return python


def expected(context):
    """The listed tests that concern this target: by name, outcome and reason."""
    listed = {}
    for line in (context.source / "expected-failures.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            where, outcome, test, reason = line.split(maxsplit=3)
            assert where in ("any", "ringkeeper") and outcome in ("fails", "hangs", "skips"), line
            if where in ("any", context.target):
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
