"""The Java client of Debian's libzookeeper-java, operation by operation."""

from harness import compile_java, converse, java, report_lines


def run(context):
    classes = compile_java(context, "java")
    # Containers and TTL znodes are looked at twice a second, not once a minute.
    with context.server(properties={"znode.container.checkIntervalMs": "500"}) as server:

        def restart():
            ended = server.stop()
            if ended:
                context.check("the server ends in order before its restart", False, ended)
            server.start()

        def kill():
            server.kill()
            server.start()

        done = converse(
            java(classes, "RawClient", server.address, context.target),
            240,
            {"restart": restart, "kill": kill},
        )
        report_lines(context, done)
