import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Stat;

/** {@code Dump ADDRESS}: every znode of a running server, in a line each, sorted. */
final class Dump {
    private static final int IN_FLIGHT = 500;

    private final ZooKeeper zk;
    private final List<String> lines = Collections.synchronizedList(new ArrayList<>());
    private final Semaphore room = new Semaphore(IN_FLIGHT);
    private final AtomicReference<String> failure = new AtomicReference<>();

    private Dump(ZooKeeper zk) {
        this.zk = zk;
    }

    public static void main(String[] arguments) throws Exception {
        try (ZooKeeper zk = Clients.connect(arguments[0])) {
            Dump dump = new Dump(zk);
            dump.walk();
            Collections.sort(dump.lines);
            StringBuilder text = new StringBuilder();
            dump.lines.forEach(line -> text.append(line).append('\n'));
            System.out.print(text);
        }
    }

    private void walk() throws Exception {
        Deque<String> level = new ArrayDeque<>(List.of("/"));
        while (!level.isEmpty()) {
            List<String> below = Collections.synchronizedList(new ArrayList<>());
            for (String path : level) {
                room.acquire();
                read(path, below);
            }
            room.acquire(IN_FLIGHT);
            room.release(IN_FLIGHT);
            if (failure.get() != null) {
                throw new IllegalStateException(failure.get());
            }
            level = new ArrayDeque<>(below);
        }
    }

    /** Data, children and ACL of one znode, which must belong to one state of it. */
    private void read(String path, List<String> below) {
        zk.getData(path, false, (code, where, context, data, stat) -> {
            if (failed(code, path)) {
                return;
            }
            zk.getChildren(path, false, (childrenCode, childrenWhere, childrenContext, children, childrenStat) -> {
                if (failed(childrenCode, path)) {
                    return;
                }
                zk.getACL(path, new Stat(), (aclCode, aclWhere, aclContext, acl, aclStat) -> {
                    if (!failed(aclCode, path)) {
                        add(path, data, stat, acl, children, childrenStat, aclStat);
                        children.forEach(child -> below.add(path.equals("/") ? "/" + child : path + "/" + child));
                        room.release();
                    }
                }, null);
            }, null);
        }, null);
    }

    private void add(String path, byte[] data, Stat stat, List<ACL> acl, List<String> children, Stat childrenStat, Stat aclStat) {
        if (!stat.equals(childrenStat) || !stat.equals(aclStat) || children.size() != stat.getNumChildren()) {
            failure.compareAndSet(null, path + " changes under the dump: " + stat + childrenStat + aclStat + children.size());
        }
        try {
            lines.add(Clients.line(path, data, stat, acl));
        } catch (Exception error) {
            failure.compareAndSet(null, path + ": " + error);
        }
    }

    private boolean failed(int code, String path) {
        if (code == 0) {
            return false;
        }
        failure.compareAndSet(null, path + ": " + Code.get(code));
        room.release();
        return true;
    }
}
