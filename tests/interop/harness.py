"""What every suite shares: a server to talk to, and a report of what held.

A server is ringkeeper or Apache ZooKeeper, started on a zoo.cfg that this module writes and on
the system properties a suite asks for, so that a suite never knows which of the two it tests.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = Path(os.environ["INTEROP_WORK"])
JARS = Path("/usr/share/java")

# How long a server may take to answer after its start, and to end after SIGTERM.
START_DEADLINE_S = 60
STOP_DEADLINE_S = 30

# The class path of server and clients. Debian's zookeeper.jar names most of what it needs in its
# manifest, but not what the Netty transport pulls in.
CLASS_PATH = ":".join(
    str(JARS / f"{name}.jar")
    for name in [
        "zookeeper",
        "slf4j-simple",
        "netty-codec",
        "netty-resolver",
        "netty-transport-native-unix-common",
        "curator-client",
        "curator-framework",
        "curator-recipes",
    ]
)

# super:test, as ZooKeeper's DigestAuthenticationProvider hashes it.
SUPER_DIGEST = "super:D/InIHSb7yEEbrWz8b9l71RjZJU="


class Report:
    """Counts checks, and prints each as it is made."""

    def __init__(self):
        self.suite = ""
        self.passed = 0
        self.failed = 0
        self.failures = []

    def check(self, name, ok, detail=""):
        if ok:
            self.passed += 1
            print(f"ok    {self.suite}: {name}", flush=True)
        else:
            self.failed += 1
            self.failures.append(f"{self.suite}: {name}")
            print(f"FAIL  {self.suite}: {name}", flush=True)
            for line in str(detail).rstrip().splitlines():
                print(f"      | {line}", flush=True)
        return ok


class Context:
    """One run of one suite: where it may write, what it tests, where it reports."""

    def __init__(self, suite, report):
        self.suite = suite
        self.report = report
        self.check = report.check
        self.target = os.environ["TARGET"]
        self.source = HERE / suite
        self.work = WORK / suite
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    @contextlib.contextmanager
    def server(self, name="server", **options):
        """A server of the target on an empty directory, stopped at the end, which must be orderly."""
        server = Server(self.target, self.work / name, **options)
        server.start()
        try:
            yield server
        except BaseException:
            server.kill()
            print_tail(server.log)
            raise
        ended = server.stop()
        self.check(f"{name} ends in order on SIGTERM", ended is None, ended or "")


class Server:
    """A server process on a directory that outlives it."""

    def __init__(
        self, target, directory, properties=None, settings=None, port=None, class_path=CLASS_PATH
    ):
        self.target = target
        self.class_path = class_path
        self.directory = Path(directory)
        self.data = self.directory / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "server.log"
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.properties = {
            "zookeeper.admin.enableServer": "false",
            "zookeeper.extendedTypesEnabled": "true",
            "zookeeper.DigestAuthenticationProvider.superDigest": SUPER_DIGEST,
            **(properties or {}),
        }
        self.settings = {
            "tickTime": 500,
            "minSessionTimeout": 500,
            "maxSessionTimeout": 120000,
            "maxClientCnxns": 0,
            "4lw.commands.whitelist": "*",
            **(settings or {}),
        }
        self.process = None

    def start(self):
        """Starts the server and returns once it serves; a server that ends instead is an error."""
        self.launch()
        self.await_serving()

    def launch(self):
        """Starts the process."""
        config = self.directory / "zoo.cfg"
        settings = {
            "dataDir": self.data,
            "clientPort": self.port,
            "clientPortAddress": "127.0.0.1",
            **self.settings,
        }
        config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        options = [f"-D{key}={value}" for key, value in self.properties.items()]
        if self.target == "zookeeper":
            command = [
                "java",
                "-Xmx512m",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
                "-Dorg.slf4j.simpleLogger.showDateTime=true",
                "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
                # 3.9.3 comes with Log4j.
                "-Dlog4j2.level=INFO",
                "-cp",
                self.class_path,
                *options,
                "org.apache.zookeeper.server.quorum.QuorumPeerMain",
                str(config),
            ]
        else:
            command = [os.environ["RINGKEEPER"], *options, str(config)]
        with open(self.log, "ab") as log:
            log.write(f"--- {' '.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )

    def await_serving(self):
        """Waits until the server serves; a server that ends instead is an error."""
        deadline = time.monotonic() + START_DEADLINE_S
        while "Mode:" not in self.four_letter("srvr"):
            code = self.process.poll()
            if code is not None:
                print_tail(self.log)
                raise RuntimeError(f"the server ended with {code} instead of serving")
            if time.monotonic() > deadline:
                self.kill()
                print_tail(self.log)
                raise RuntimeError(f"the server does not serve after {START_DEADLINE_S} s")
            time.sleep(0.05)

    def stop(self):
        """Ends the server by SIGTERM; the reason if that was not orderly."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"still running {STOP_DEADLINE_S} s after SIGTERM"
        # A JVM that ends by SIGTERM says so in its exit code; we end with 0.
        expected = 143 if self.target == "zookeeper" else 0
        return None if code == expected else f"it ended with {code}, not {expected}"

    def kill(self):
        """kill -9."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def four_letter(self, word):
        """The answer to a four-letter word, empty while there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(word.encode())
                answer = b""
                while chunk := connection.recv(65536):
                    answer += chunk
                return answer.decode()
        except OSError:
            return ""

    def version(self):
        """The version the server claims, as 3.8.0."""
        for line in self.four_letter("srvr").splitlines():
            if line.startswith("Zookeeper version: "):
                return line.removeprefix("Zookeeper version: ").split("-")[0].split(",")[0]
        raise RuntimeError("srvr names no version")

    def zxid(self):
        """The last zxid, as srvr prints it."""
        for line in self.four_letter("srvr").splitlines():
            if line.startswith("Zxid: "):
                return line.removeprefix("Zxid: ")
        raise RuntimeError("srvr names no zxid")


def free_port():
    """A port nobody listens on, below the range that the kernel hands to clients."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def print_tail(path, lines=30):
    """The last lines of a log, for the reader of a failure."""
    if path.exists():
        for line in path.read_text(errors="replace").splitlines()[-lines:]:
            print(f"      | {line[:400]}", flush=True)


def run(command, timeout, **options):
    """Runs a program to its end, together with all it started, and returns it with its output.

    A program that runs past its time is killed; its return code is then None.
    """
    process = subprocess.Popen(
        command,
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.STDOUT),
        text=True,
        errors="replace",
        start_new_session=True,
        **options,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        code = None
    return subprocess.CompletedProcess(command, code, stdout, stderr)


def virtual_environment(requirements):
    """The Python of a virtual environment with the requirements, made once per list of them."""
    name = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = WORK / f"venv-{name}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["/usr/bin/python3", "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = run([*pip, "-r", str(requirements)], 600)
        if done.returncode != 0:
            raise RuntimeError(f"pip ended with {done.returncode}:\n{done.stdout[-4000:]}")
        (folder / "complete").touch()
    return python


def compile_java(context, *folders):
    """Compiles the Java sources of the folders; the directory of classes."""
    classes = context.work / "classes"
    classes.mkdir(exist_ok=True)
    sources = sorted(str(path) for folder in folders for path in (HERE / folder).glob("*.java"))
    done = run(["javac", "-nowarn", "-Xlint:none", "-cp", CLASS_PATH, "-d", str(classes), *sources], 180)
    if done.returncode != 0:
        raise RuntimeError(f"javac ended with {done.returncode}:\n{done.stdout}")
    return classes


def java(classes, main, *arguments, properties=()):
    """The command that runs one of our Java programs."""
    return [
        "java",
        "-Xmx256m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
        *properties,
        "-cp",
        f"{classes}:{CLASS_PATH}",
        main,
        *map(str, arguments),
    ]


def report_lines(context, done):
    """Takes over the checks that a program reports on its output.

    A check is a line `ok NAME` or `FAIL NAME`, the latter followed by indented lines of detail; the
    last line is `done COUNT`. A program that dies early is a failure of its own.
    """
    checks, finished = [], None
    for line in done.stdout.splitlines():
        if line.startswith("ok "):
            checks.append((line[3:], True, []))
        elif line.startswith("FAIL "):
            checks.append((line[5:], False, []))
        elif line.startswith("done "):
            finished = int(line[5:])
        elif checks:
            checks[-1][2].append(line)
    for name, ok, detail in checks:
        context.check(name, ok, "\n".join(detail))
    whole = finished == len(checks) and finished > 0 and done.returncode in (0, 1)
    if not whole:
        reason = "ran past its time" if done.returncode is None else f"ended with {done.returncode}"
        tail = "\n".join(done.stdout.splitlines()[-40:])
        context.check(
            "the program runs to its end", False, f"{reason} after {len(checks)} checks\n{tail}"
        )


def converse(command, timeout, wishes):
    """Runs a program as `run` does, and grants what it asks for by lines `want NAME`."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    overdue = threading.Event()

    def end():
        overdue.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout, end)
    timer.start()
    lines = []
    try:
        for line in process.stdout:
            if line.startswith("want "):
                wishes[line.removeprefix("want ").strip()]()
                process.stdin.write("done\n")
                process.stdin.flush()
            else:
                lines.append(line)
        code = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()
    return subprocess.CompletedProcess(
        command, None if overdue.is_set() else code, "".join(lines), None
    )
