import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.Objects;
import java.util.concurrent.Callable;

/**
 * The checks of one program, printed as they are made: {@code ok NAME}, or {@code FAIL NAME} with
 * the reason on indented lines, and {@code done COUNT} at the end.
 */
final class Checks {
    /** How long anything that ought to happen may take. */
    static final long DEADLINE_MS = 20_000;

    private static final BufferedReader STDIN = new BufferedReader(new InputStreamReader(System.in));
    private int made;
    private int failed;

    interface Body {
        void run() throws Exception;
    }

    void check(String name, Body body) {
        made++;
        try {
            body.run();
            System.out.println("ok " + name);
        } catch (Throwable reason) {
            failed++;
            System.out.println("FAIL " + name);
            System.out.println("  " + reason);
            for (StackTraceElement at : reason.getStackTrace()) {
                System.out.println("    at " + at);
            }
            if (reason.getCause() != null) {
                System.out.println("  caused by " + reason.getCause());
            }
        }
        System.out.flush();
    }

    /** Ends the program, whatever threads its clients have left. */
    void done() {
        System.out.println("done " + made);
        System.out.flush();
        Runtime.getRuntime().halt(failed == 0 ? 0 : 1);
    }

    /** Asks the script that started us for something, as "restart", and waits until it is done. */
    static void want(String what) throws IOException {
        System.out.println("want " + what);
        System.out.flush();
        if (STDIN.readLine() == null) {
            throw new IOException("nobody answers to 'want " + what + "'");
        }
    }

    static void that(boolean claim, String otherwise) {
        if (!claim) {
            throw new AssertionError(otherwise);
        }
    }

    static void equal(Object expected, Object found) {
        if (!Objects.equals(expected, found)) {
            throw new AssertionError("expected " + expected + ", found " + found);
        }
    }

    /** Waits until a condition holds. */
    static void until(String what, Callable<Boolean> condition) throws Exception {
        long deadline = System.nanoTime() + DEADLINE_MS * 1_000_000;
        while (!condition.call()) {
            that(System.nanoTime() < deadline, "not within " + DEADLINE_MS + " ms: " + what);
            Thread.sleep(10);
        }
    }

    /** Runs what must fail, and checks with what. */
    static <E extends Throwable> E fails(Class<E> expected, Body body) throws Exception {
        try {
            body.run();
        } catch (Throwable found) {
            if (expected.isInstance(found)) {
                return expected.cast(found);
            }
            throw new AssertionError("expected " + expected.getSimpleName() + ", found " + found, found);
        }
        throw new AssertionError("expected " + expected.getSimpleName() + ", found none");
    }
}
