import java.util.TreeSet;
import org.apache.zookeeper.ZooKeeper;

/**
 * {@code Attach ADDRESS ID:PASSWORD ...}: takes sessions over, prints each one's timeout and
 * ephemerals, or why it cannot be had, and closes the first of them.
 */
final class Attach {
    private Attach() {}

    public static void main(String[] arguments) {
        for (int index = 1; index < arguments.length; index++) {
            String[] session = arguments[index].split(":");
            try {
                ZooKeeper zk = Clients.connect(
                    arguments[0], Long.parseUnsignedLong(session[0], 16), Clients.bytes(session[1]));
                System.out.printf("%s %d %s\n", session[0], zk.getSessionTimeout(), new TreeSet<>(zk.getEphemerals()));
                if (index == 1) {
                    zk.close();
                }
            } catch (Exception error) {
                System.out.printf("%s %s\n", session[0], error);
            }
        }
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }
}
