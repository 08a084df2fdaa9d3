"""Runs the suites named on the command line, or all, and counts what held."""

import importlib.util
import os
import sys
import time
from pathlib import Path

from harness import Context, Report

HERE = Path(__file__).resolve().parent

# In order of what they tell: the quick and broad ones first.
SUITES = ["java", "rust-client", "c-client", "zkcli", "curator", "disk", "ensemble", "kazoo"]


def load(name):
    """A suite is a folder with a suite.py, whose `run` takes a Context."""
    spec = importlib.util.spec_from_file_location(
        "suite_" + name.replace("-", "_"), HERE / name / "suite.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(names):
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"no such suite: {', '.join(unknown)}; there are {', '.join(SUITES)}", file=sys.stderr)
        return 2
    report = Report()
    for name in names or SUITES:
        started = time.monotonic()
        print(f"== {name} ({os.environ['TARGET']})", flush=True)
        report.suite = name
        before = report.passed + report.failed
        try:
            load(name).run(Context(name, report))
        except Exception as error:
            report.check("the suite runs to its end", False, f"{type(error).__name__}: {error}")
        if report.passed + report.failed == before:
            report.check("the suite checks something", False, "it made no check")
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)
    for name in report.failures:
        print(f"failed: {name}")
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
