"""The zookeeper-client crate, in a cargo project of its own."""

from harness import WORK, report_lines, run as run_program


def run(context):
    target = WORK / "rust-target"
    build = ["cargo", "build", "--quiet", "--locked", "--target-dir", str(target)]
    done = run_program(build, 600, cwd=context.source)
    if done.returncode != 0:
        raise RuntimeError(f"cargo build ended with {done.returncode}:\n{done.stdout[-4000:]}")
    with context.server() as server:
        program = [str(target / "debug" / "rust-client"), server.address, server.version()]
        report_lines(context, run_program(program, 120))
