"""Curator's recipes, from Debian's libcurator-*-java."""

from harness import compile_java, java, report_lines, run as run_program


def run(context):
    classes = compile_java(context, "java", "curator")
    # Containers and TTL znodes are looked at twice a second, not once a minute.
    with context.server(properties={"znode.container.checkIntervalMs": "500"}) as server:
        done = run_program(java(classes, "Recipes", server.address), 300)
        report_lines(context, done)
