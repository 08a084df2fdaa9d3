import static java.nio.charset.StandardCharsets.UTF_8;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import org.apache.zookeeper.AddWatchMode;
import org.apache.zookeeper.AsyncCallback;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Op;
import org.apache.zookeeper.OpResult;
import org.apache.zookeeper.WatchedEvent;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.Watcher.Event.EventType;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.Watcher.WatcherType;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.ZooDefs.Perms;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.admin.ZooKeeperAdmin;
import org.apache.zookeeper.client.ZKClientConfig;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.ClientInfo;
import org.apache.zookeeper.data.Id;
import org.apache.zookeeper.data.Stat;
import org.apache.zookeeper.server.auth.DigestAuthenticationProvider;

/**
 * Every operation of the Java client, and what a session lives through.
 *
 * <p>Where releases of ZooKeeper differ (a create's result in a multi, READ for exists), a check
 * takes either answer.
 */
final class RawClient {
    private static final List<ACL> OPEN = Ids.OPEN_ACL_UNSAFE;

    private final String address;
    private final Checks checks = new Checks();
    /** The client of most checks. */
    private ZooKeeper zk;
    private int bases;
    /** Whether the server lets a stranger disturb a session, as Apache ZooKeeper does. */
    private final boolean disturbs;

    private RawClient(String address, String target) {
        this.address = address;
        disturbs = target.equals("zookeeper");
    }

    public static void main(String[] arguments) throws Exception {
        new RawClient(arguments[0], arguments[1]).run();
    }

    private void run() throws Exception {
        zk = connect(address, 10_000, event -> {});
        creating();
        reading();
        writing();
        multi();
        watches();
        acls();
        sessions();
        reconnecting();
        pipelining();
        restarts();
        checks.done();
    }

    private void creating() {
        checks.check("create: a persistent znode and its stat", () -> {
            String base = base();
            Stat stat = new Stat();
            Checks.equal(base + "/a", zk.create(base + "/a", bytes("one"), OPEN, CreateMode.PERSISTENT, stat));
            Checks.equal(0, stat.getVersion());
            Checks.equal(0, stat.getCversion());
            Checks.equal(0, stat.getAversion());
            Checks.equal(3, stat.getDataLength());
            Checks.equal(0L, stat.getEphemeralOwner());
            Checks.equal(stat.getCzxid(), stat.getMzxid());
            Checks.equal(stat.getCzxid(), stat.getPzxid());
            Checks.equal(stat.getCtime(), stat.getMtime());
            Checks.equal(stat, zk.exists(base + "/a", false));
            Stat parent = zk.exists(base, false);
            Checks.equal(1, parent.getNumChildren());
            Checks.equal(1, parent.getCversion());
            Checks.equal(stat.getCzxid(), parent.getPzxid());
        });
        checks.check("create: sequential names count every create below the parent", () -> {
            String base = base();
            Checks.equal(base + "/s-0000000000", create(base + "/s-", CreateMode.PERSISTENT_SEQUENTIAL));
            create(base + "/plain", CreateMode.PERSISTENT);
            Checks.equal(base + "/s-0000000002", create(base + "/s-", CreateMode.PERSISTENT_SEQUENTIAL));
            zk.delete(base + "/s-0000000002", -1);
            Checks.equal(base + "/s-0000000003", create(base + "/s-", CreateMode.EPHEMERAL_SEQUENTIAL));
            Checks.equal(base + "/0000000004", create(base + "/", CreateMode.PERSISTENT_SEQUENTIAL));
        });
        checks.check("create: an ephemeral is owned by its session and has no children", () -> {
            String base = base();
            create(base + "/e", CreateMode.EPHEMERAL);
            Checks.equal(zk.getSessionId(), zk.exists(base + "/e", false).getEphemeralOwner());
            Checks.fails(KeeperException.NoChildrenForEphemeralsException.class,
                () -> create(base + "/e/child", CreateMode.PERSISTENT));
        });
        checks.check("create: a container goes when its last child has gone", () -> {
            String base = base();
            Stat stat = new Stat();
            zk.create(base + "/c", bytes("x"), OPEN, CreateMode.CONTAINER, stat);
            Checks.equal(0L, stat.getEphemeralOwner());
            create(base + "/c/child", CreateMode.PERSISTENT);
            zk.delete(base + "/c/child", -1);
            Checks.until("the container is gone", () -> zk.exists(base + "/c", false) == null);
        });
        checks.check("create: a TTL znode goes when nobody changes it", () -> {
            String base = base();
            Stat stat = new Stat();
            zk.create(base + "/t", bytes("x"), OPEN, CreateMode.PERSISTENT_WITH_TTL, stat, 300);
            String sequential = zk.create(base + "/t-", bytes("x"), OPEN,
                CreateMode.PERSISTENT_SEQUENTIAL_WITH_TTL, stat, 3_600_000);
            Checks.equal(base + "/t-0000000001", sequential);
            Checks.until("the znode is gone", () -> zk.exists(base + "/t", false) == null);
            Checks.that(zk.exists(sequential, false) != null, "one with an hour to live has gone as well");
        });
        checks.check("create: what it refuses", () -> {
            String base = base();
            Checks.fails(KeeperException.NodeExistsException.class, () -> create(base, CreateMode.PERSISTENT));
            Checks.fails(KeeperException.NoNodeException.class,
                () -> create(base + "/no/child", CreateMode.PERSISTENT));
            Checks.fails(KeeperException.InvalidACLException.class,
                () -> zk.create(base + "/x", null, acl(new ACL(31, new Id("nosuch", "x"))), CreateMode.PERSISTENT));
            Checks.fails(KeeperException.InvalidACLException.class,
                () -> zk.create(base + "/x", null, acl(), CreateMode.PERSISTENT));
            Checks.fails(KeeperException.NodeExistsException.class,
                () -> create("/zookeeper/quota", CreateMode.PERSISTENT));
        });
    }

    private void reading() {
        checks.check("read: null data is not empty data", () -> {
            String base = base();
            zk.create(base + "/null", null, OPEN, CreateMode.PERSISTENT);
            zk.create(base + "/empty", new byte[0], OPEN, CreateMode.PERSISTENT);
            Checks.equal(null, zk.getData(base + "/null", false, null));
            Checks.equal(0, zk.getData(base + "/empty", false, null).length);
        });
        checks.check("read: exists, getData and getChildren of what is not there", () -> {
            String base = base();
            Checks.equal(null, zk.exists(base + "/no", false));
            Checks.fails(KeeperException.NoNodeException.class, () -> zk.getData(base + "/no", false, null));
            Checks.fails(KeeperException.NoNodeException.class, () -> zk.getChildren(base + "/no", false));
            Checks.fails(KeeperException.NoNodeException.class, () -> zk.getACL(base + "/no", null));
        });
        checks.check("read: children, with and without the stat, and all of them counted", () -> {
            String base = base();
            Set<String> names = new HashSet<>();
            for (int index = 0; index < 250; index++) {
                create(base + "/child-" + index, CreateMode.PERSISTENT);
                names.add("child-" + index);
            }
            create(base + "/child-7/grandchild", CreateMode.PERSISTENT);
            Stat stat = new Stat();
            Checks.equal(names, new HashSet<>(zk.getChildren(base, false, stat)));
            Checks.equal(names, new HashSet<>(zk.getChildren(base, false)));
            Checks.equal(250, stat.getNumChildren());
            Checks.equal(251, zk.getAllChildrenNumber(base));
        });
        checks.check("read: the session's ephemerals, by prefix", () -> {
            String base = base();
            try (ZooKeeper other = connect(address, 10_000, event -> {})) {
                for (String path : List.of("/a1", "/a2", "/b1")) {
                    other.create(base + path, null, OPEN, CreateMode.EPHEMERAL);
                }
                create(base + "/foreign", CreateMode.EPHEMERAL);
                Checks.equal(Set.of(base + "/a1", base + "/a2", base + "/b1"), new HashSet<>(other.getEphemerals()));
                Checks.equal(Set.of(base + "/a1", base + "/a2"), new HashSet<>(other.getEphemerals(base + "/a")));
                Checks.equal(List.of(), other.getEphemerals("/nowhere"));
            }
        });
        checks.check("read: sync answers with the path", () -> {
            String base = base();
            CountDownLatch answered = new CountDownLatch(1);
            List<Object> answer = new ArrayList<>();
            zk.sync(base, (code, path, context) -> {
                answer.addAll(Arrays.asList(code, path, context));
                answered.countDown();
            }, "context");
            Checks.that(answered.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "no answer");
            Checks.equal(List.of(0, base, "context"), answer);
        });
        checks.check("read: unicode names and data come back as they went", () -> {
            String base = base();
            String path = base + "/h\u00e9llo-\u4e16\u754c";
            zk.create(path, bytes("d\u00e4ta"), OPEN, CreateMode.PERSISTENT);
            Checks.equal("d\u00e4ta", text(zk.getData(path, false, null)));
            Checks.equal(List.of("h\u00e9llo-\u4e16\u754c"), zk.getChildren(base, false));
        });
        checks.check("read: the reserved znodes, and no ensemble in /zookeeper/config", () -> {
            Checks.equal(Set.of("config", "quota"), new HashSet<>(zk.getChildren("/zookeeper", false)));
            Checks.equal("", text(zk.getConfig(false, new Stat())));
        });
    }

    private void writing() {
        checks.check("write: setData counts versions and keeps to those asked for", () -> {
            String base = base();
            Stat created = zk.exists(base, false);
            Stat first = zk.setData(base, bytes("1"), 0);
            Stat second = zk.setData(base, bytes("22"), -1);
            Checks.equal(1, first.getVersion());
            Checks.equal(2, second.getVersion());
            Checks.equal(2, second.getDataLength());
            Checks.equal(created.getCzxid(), second.getCzxid());
            Checks.that(first.getMzxid() < second.getMzxid(), "mzxid does not grow");
            Checks.fails(KeeperException.BadVersionException.class, () -> zk.setData(base, bytes("3"), 1));
            Checks.fails(KeeperException.NoNodeException.class, () -> zk.setData(base + "/no", bytes("3"), -1));
            Checks.equal("22", text(zk.getData(base, false, null)));
        });
        checks.check("write: delete keeps to versions and to children", () -> {
            String base = base();
            create(base + "/child", CreateMode.PERSISTENT);
            Checks.fails(KeeperException.NotEmptyException.class, () -> zk.delete(base, -1));
            Checks.fails(KeeperException.BadVersionException.class, () -> zk.delete(base + "/child", 7));
            Checks.fails(KeeperException.NoNodeException.class, () -> zk.delete(base + "/no", -1));
            zk.delete(base + "/child", 0);
            zk.delete(base, -1);
            Checks.equal(null, zk.exists(base, false));
        });
        checks.check("write: data up to a megabyte, and the connection lost above it", () -> {
            String base = base();
            int[] sizes = {1, 65_535, 65_536, 131_072, 300_000, 524_288, 700_000, 1_000_000};
            for (int size : sizes) {
                byte[] large = new byte[size];
                Arrays.fill(large, (byte) size);
                zk.setData(base, large, -1);
                Checks.that(Arrays.equals(large, zk.getData(base, false, null)), "other data came back of " + size);
            }
            try (ZooKeeper other = connect(address, 10_000, event -> {})) {
                Checks.fails(KeeperException.ConnectionLossException.class,
                    () -> other.setData(base, new byte[1_100_000], -1));
            }
            Checks.equal(sizes.length, zk.exists(base, false).getVersion());
        });
        checks.check("write: many megabytes on their way at once, both ways", () -> {
            String base = base();
            int count = 40;
            byte[] large = new byte[600_000];
            AtomicInteger wrong = new AtomicInteger();
            CountDownLatch answered = new CountDownLatch(2 * count);
            for (int index = 0; index < count; index++) {
                zk.setData(base, large, -1, (code, path, context, stat) -> {
                    wrong.addAndGet(code == 0 ? 0 : 1);
                    answered.countDown();
                }, null);
                zk.getData(base, false, (AsyncCallback.DataCallback) (code, path, context, data, stat) -> {
                    wrong.addAndGet(code == 0 && data.length == large.length ? 0 : 1);
                    answered.countDown();
                }, null);
            }
            Checks.that(answered.await(60, TimeUnit.SECONDS), answered.getCount() + " answers are missing");
            Checks.equal(0, wrong.get());
        });
        checks.check("write: reconfig is not for a standalone server", () -> {
            try (ZooKeeperAdmin admin = new ZooKeeperAdmin(address, 10_000, event -> {})) {
                admin.addAuthInfo("digest", bytes("super:test"));
                Checks.fails(KeeperException.class,
                    () -> admin.reconfigure(null, "2", null, -1, new Stat()));
            }
        });
    }

    private void multi() {
        checks.check("multi: all of it, in one zxid", () -> {
            String base = base();
            List<OpResult> results = zk.multi(List.of(
                Op.create(base + "/a", bytes("1"), OPEN, CreateMode.PERSISTENT),
                Op.create(base + "/a/s-", bytes("2"), OPEN, CreateMode.PERSISTENT_SEQUENTIAL),
                Op.setData(base + "/a", bytes("3"), 0),
                Op.check(base + "/a", 1),
                Op.create(base + "/gone", bytes("4"), OPEN, CreateMode.EPHEMERAL),
                Op.delete(base + "/gone", 0),
                Op.create(base + "/c", null, OPEN, CreateMode.CONTAINER),
                Op.create(base + "/t", null, OPEN, CreateMode.PERSISTENT_WITH_TTL, 3_600_000)));
            Checks.equal(8, results.size());
            Checks.equal(base + "/a/s-0000000000", ((OpResult.CreateResult) results.get(1)).getPath());
            Checks.equal(1, ((OpResult.SetDataResult) results.get(2)).getStat().getVersion());
            Stat a = zk.exists(base + "/a", false);
            Checks.equal(a.getCzxid(), a.getMzxid());
            Checks.equal(a.getCzxid(), zk.exists(base + "/a/s-0000000000", false).getCzxid());
            Checks.equal(a.getCzxid(), zk.exists(base, false).getPzxid());
            Checks.equal(Set.of("a", "c", "t"), new HashSet<>(zk.getChildren(base, false)));
        });
        checks.check("multi: nothing of it when one fails, and each told why", () -> {
            String base = base();
            KeeperException failed = Checks.fails(KeeperException.BadVersionException.class, () -> zk.multi(List.of(
                Op.create(base + "/a", null, OPEN, CreateMode.PERSISTENT),
                Op.setData(base, null, 99),
                Op.create(base + "/b", null, OPEN, CreateMode.PERSISTENT))));
            List<Integer> codes = failed.getResults().stream()
                .map(result -> ((OpResult.ErrorResult) result).getErr()).collect(Collectors.toList());
            Checks.equal(List.of(0, KeeperException.Code.BADVERSION.intValue(),
                KeeperException.Code.RUNTIMEINCONSISTENCY.intValue()), codes);
            Checks.equal(List.of(), zk.getChildren(base, false));
            Checks.equal(0, zk.exists(base, false).getCversion());
        });
        checks.check("multi: reads answer each for itself", () -> {
            String base = base();
            create(base + "/a", CreateMode.PERSISTENT);
            zk.setData(base, bytes("data"), -1);
            List<OpResult> results = zk.multi(
                List.of(Op.getData(base), Op.getChildren(base + "/no"), Op.getChildren(base)));
            Checks.equal("data", text(((OpResult.GetDataResult) results.get(0)).getData()));
            Checks.equal(KeeperException.Code.NONODE.intValue(), ((OpResult.ErrorResult) results.get(1)).getErr());
            Checks.equal(List.of("a"), ((OpResult.GetChildrenResult) results.get(2)).getChildren());
        });
        checks.check("multi: an empty one", () -> Checks.equal(List.of(), zk.multi(List.<Op>of())));
        checks.check("multi: a thousand operations", () -> {
            String base = base();
            List<Op> ops = new ArrayList<>();
            for (int index = 0; index < 1000; index++) {
                ops.add(Op.create(base + "/n" + index, bytes("x"), OPEN, CreateMode.PERSISTENT));
            }
            Checks.equal(1000, zk.multi(ops).size());
            Checks.equal(1000, zk.exists(base, false).getNumChildren());
        });
    }

    private void watches() {
        checks.check("watch: each kind fires once, for what it watches", () -> {
            String base = base();
            Events events = new Events();
            Checks.equal(null, zk.exists(base + "/a", events));
            create(base + "/a", CreateMode.PERSISTENT);
            events.expect(EventType.NodeCreated, base + "/a");
            zk.getData(base + "/a", events, null);
            zk.setData(base + "/a", bytes("1"), -1);
            events.expect(EventType.NodeDataChanged, base + "/a");
            zk.setData(base + "/a", bytes("2"), -1);
            zk.getChildren(base, events);
            create(base + "/b", CreateMode.PERSISTENT);
            events.expect(EventType.NodeChildrenChanged, base);
            zk.exists(base + "/a", events);
            zk.delete(base + "/a", -1);
            events.expect(EventType.NodeDeleted, base + "/a");
            sync(zk, base);
            events.expectNone();
        });
        checks.check("watch: a deletion reaches data and child watches of the znode and its parent's", () -> {
            String base = base();
            create(base + "/a", CreateMode.PERSISTENT);
            Events own = new Events();
            Events parent = new Events();
            zk.getData(base + "/a", own, null);
            zk.getChildren(base + "/a", own);
            zk.getChildren(base, parent);
            zk.delete(base + "/a", -1);
            own.expect(EventType.NodeDeleted, base + "/a");
            parent.expect(EventType.NodeChildrenChanged, base);
            sync(zk, base);
            own.expectNone();
        });
        checks.check("watch: a persistent one stays, and sees its znode and its children's names", () -> {
            String base = base();
            Events events = new Events();
            zk.addWatch(base, events, AddWatchMode.PERSISTENT);
            zk.setData(base, bytes("1"), -1);
            zk.setData(base, bytes("2"), -1);
            create(base + "/a", CreateMode.PERSISTENT);
            create(base + "/a/b", CreateMode.PERSISTENT);
            zk.setData(base + "/a", bytes("3"), -1);
            zk.delete(base + "/a/b", -1);
            zk.delete(base + "/a", -1);
            zk.delete(base, -1);
            events.expect(EventType.NodeDataChanged, base);
            events.expect(EventType.NodeDataChanged, base);
            events.expect(EventType.NodeChildrenChanged, base);
            events.expect(EventType.NodeChildrenChanged, base);
            events.expect(EventType.NodeDeleted, base);
            sync(zk, "/");
            events.expectNone();
        });
        checks.check("watch: a recursive one sees every znode below, and no child events", () -> {
            String base = base();
            Events events = new Events();
            zk.addWatch(base, events, AddWatchMode.PERSISTENT_RECURSIVE);
            create(base + "/a", CreateMode.PERSISTENT);
            create(base + "/a/b", CreateMode.PERSISTENT);
            zk.setData(base + "/a/b", bytes("1"), -1);
            zk.delete(base + "/a/b", -1);
            events.expect(EventType.NodeCreated, base + "/a");
            events.expect(EventType.NodeCreated, base + "/a/b");
            events.expect(EventType.NodeDataChanged, base + "/a/b");
            events.expect(EventType.NodeDeleted, base + "/a/b");
            sync(zk, "/");
            events.expectNone();
        });
        checks.check("watch: removed, it says so and fires no more", () -> {
            String base = base();
            Events data = new Events();
            Events children = new Events();
            zk.getData(base, data, null);
            zk.getChildren(base, children);
            zk.removeWatches(base, data, WatcherType.Data, false);
            data.expect(EventType.DataWatchRemoved, base);
            zk.removeAllWatches(base, WatcherType.Children, false);
            children.expect(EventType.ChildWatchRemoved, base);
            Events lasting = new Events();
            zk.addWatch(base, lasting, AddWatchMode.PERSISTENT_RECURSIVE);
            zk.removeWatches(base, lasting, WatcherType.Any, false);
            lasting.expect(EventType.PersistentWatchRemoved, base);
            Checks.fails(KeeperException.NoWatcherException.class,
                () -> zk.removeWatches(base, data, WatcherType.Data, false));
            create(base + "/a", CreateMode.PERSISTENT);
            zk.setData(base, bytes("1"), -1);
            sync(zk, base);
            data.expectNone();
            children.expectNone();
            lasting.expectNone();
        });
        checks.check("watch: an event comes before the data that caused it", () -> {
            String base = base();
            try (ZooKeeper writer = connect(address, 10_000, event -> {})) {
                List<String> failures = Collections.synchronizedList(new ArrayList<>());
                for (int round = 1; round <= 200; round++) {
                    Events events = new Events();
                    byte[] seen = zk.getData(base, events, null);
                    writer.setData(base, bytes("" + round), -1);
                    // Reads until the new value shows; by then the event must have been delivered.
                    while (Arrays.equals(seen, zk.getData(base, false, null))) {
                        Thread.onSpinWait();
                    }
                    // The client hands events and answers to one queue, in the order of the wire.
                    CountDownLatch drained = new CountDownLatch(1);
                    zk.exists("/", false, (code, path, context, stat) -> drained.countDown(), null);
                    Checks.that(drained.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "no answer");
                    if (events.queue.isEmpty()) {
                        failures.add("round " + round);
                    }
                }
                Checks.equal(List.of(), failures);
            }
        });
    }

    private void acls() {
        checks.check("acl: a digest opens what is closed to others", () -> {
            String base = base();
            String id = DigestAuthenticationProvider.generateDigest("user:secret");
            try (ZooKeeper user = connect(address, 10_000, event -> {})) {
                user.addAuthInfo("digest", bytes("user:secret"));
                user.create(base + "/own", bytes("x"), Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
                Checks.equal(acl(new ACL(Perms.ALL, new Id("digest", id))),
                    user.getACL(base + "/own", new Stat()));
                Checks.equal("x", text(user.getData(base + "/own", false, null)));
                Checks.fails(KeeperException.NoAuthException.class, () -> zk.getData(base + "/own", false, null));
                Checks.fails(KeeperException.NoAuthException.class, () -> zk.setData(base + "/own", null, -1));
                Checks.fails(KeeperException.NoAuthException.class, () -> zk.getChildren(base + "/own", false));
                Checks.fails(KeeperException.NoAuthException.class,
                    () -> create(base + "/own/child", CreateMode.PERSISTENT));
                Checks.fails(KeeperException.NoAuthException.class, () -> zk.setACL(base + "/own", OPEN, -1));
                user.create(base + "/own/child", null, OPEN, CreateMode.PERSISTENT);
                Checks.fails(KeeperException.NoAuthException.class, () -> zk.delete(base + "/own/child", -1));
            }
            try (ZooKeeper root = connect(address, 10_000, event -> {})) {
                root.addAuthInfo("digest", bytes("super:test"));
                Checks.equal("x", text(root.getData(base + "/own", false, null)));
            }
        });
        checks.check("acl: each permission for itself", () -> {
            String base = base();
            zk.create(base + "/r", bytes("x"), acl(new ACL(Perms.READ, Ids.ANYONE_ID_UNSAFE)), CreateMode.PERSISTENT);
            zk.getData(base + "/r", false, null);
            zk.getACL(base + "/r", new Stat());
            Checks.fails(KeeperException.NoAuthException.class, () -> zk.setData(base + "/r", null, -1));
            zk.create(base + "/w", null, acl(new ACL(Perms.WRITE, Ids.ANYONE_ID_UNSAFE)), CreateMode.PERSISTENT);
            zk.setData(base + "/w", bytes("y"), -1);
            Checks.fails(KeeperException.NoAuthException.class, () -> zk.getData(base + "/w", false, null));
            zk.create(base + "/a", null, acl(new ACL(Perms.ADMIN, Ids.ANYONE_ID_UNSAFE)), CreateMode.PERSISTENT);
            Checks.equal(1, zk.setACL(base + "/a", OPEN, 0).getAversion());
            Checks.fails(KeeperException.BadVersionException.class, () -> zk.setACL(base + "/a", OPEN, 0));
            zk.setData(base + "/a", null, -1);
        });
        checks.check("acl: by address", () -> {
            String base = base();
            zk.create(base + "/here", bytes("x"), acl(new ACL(Perms.ALL, new Id("ip", "127.0.0.0/8"))), CreateMode.PERSISTENT);
            zk.getData(base + "/here", false, null);
            zk.create(base + "/there", bytes("x"), acl(new ACL(Perms.ALL, new Id("ip", "10.1.2.3"))), CreateMode.PERSISTENT);
            Checks.fails(KeeperException.NoAuthException.class, () -> zk.getData(base + "/there", false, null));
        });
        checks.check("acl: who a connection is", () -> {
            try (ZooKeeper user = connect(address, 10_000, event -> {})) {
                Checks.equal(Set.of("ip:127.0.0.1"), identities(user.whoAmI()));
                user.addAuthInfo("digest", bytes("user:secret"));
                Checks.equal(Set.of("ip:127.0.0.1", "digest:user"), identities(user.whoAmI()));
            }
        });
        checks.check("acl: an unknown scheme fails the session's authentication", () -> {
            Events events = new Events();
            try (ZooKeeper user = connect(address, 10_000, events)) {
                events.expectState(KeeperState.SyncConnected);
                user.addAuthInfo("nosuch", bytes("x"));
                events.expectState(KeeperState.AuthFailed);
            }
        });
    }

    private void sessions() {
        checks.check("session: the timeout is negotiated into the server's bounds", () -> {
            try (ZooKeeper low = connect(address, 300, event -> {});
                 ZooKeeper high = connect(address, 10_000_000, event -> {})) {
                Checks.equal(500, low.getSessionTimeout());
                Checks.equal(120_000, high.getSessionTimeout());
            }
        });
        checks.check("session: closed, its ephemerals are gone, and watches on them have fired", () -> {
            String base = base();
            Events events = new Events();
            try (ZooKeeper other = connect(address, 10_000, event -> {})) {
                other.create(base + "/e", null, OPEN, CreateMode.EPHEMERAL);
                zk.exists(base + "/e", events);
            }
            events.expect(EventType.NodeDeleted, base + "/e");
            Checks.equal(null, zk.exists(base + "/e", false));
        });
        checks.check("session: silent past its timeout, it expires and is told so when it returns", () -> {
            String base = base();
            try (Proxy proxy = new Proxy(address)) {
                Events events = new Events();
                try (ZooKeeper silent = connect(proxy.address(), 1_000, events)) {
                    events.expectState(KeeperState.SyncConnected);
                    silent.create(base + "/e", null, OPEN, CreateMode.EPHEMERAL);
                    proxy.down();
                    events.expectState(KeeperState.Disconnected);
                    Checks.until("the ephemeral is gone", () -> zk.exists(base + "/e", false) == null);
                    proxy.up();
                    events.expectState(KeeperState.Expired);
                    Checks.fails(KeeperException.SessionExpiredException.class, () -> silent.exists("/", false));
                }
            }
        });
        checks.check("session: quiet but alive, it is kept by its pings", () -> {
            String base = base();
            try (ZooKeeper quiet = connect(address, 600, event -> {})) {
                quiet.create(base + "/e", null, OPEN, CreateMode.EPHEMERAL);
                Thread.sleep(2_500);
                Checks.that(zk.exists(base + "/e", false) != null, "its ephemeral is gone");
                quiet.exists("/", false);
            }
        });
        checks.check("session: taken over by id and password, it keeps its ephemerals", () -> {
            String base = base();
            ZooKeeper first = connect(address, 10_000, event -> {});
            first.create(base + "/e", null, OPEN, CreateMode.EPHEMERAL);
            Events events = new Events();
            try (ZooKeeper second = new ZooKeeper(address, 10_000, events, first.getSessionId(), first.getSessionPasswd())) {
                events.expectState(KeeperState.SyncConnected);
                Checks.equal(first.getSessionId(), second.getSessionId());
                Checks.equal(List.of(base + "/e"), second.getEphemerals());
            }
            Checks.equal(null, zk.exists(base + "/e", false));
            first.close(1);
        });
        checks.check("session: a wrong password takes nothing over", () -> {
            String base = base();
            try (ZooKeeper owner = connect(address, 10_000, event -> {})) {
                owner.create(base + "/e", null, OPEN, CreateMode.EPHEMERAL);
                Events seen = new Events();
                owner.register(seen);
                Events events = new Events();
                ZooKeeper thief = new ZooKeeper(address, 10_000, events, owner.getSessionId(), new byte[16]);
                events.expectState(KeeperState.Expired);
                thief.close(1);
                // ZooKeeper cuts the owner's connection before it looks at the password
                // (ZooKeeperServer.processConnectRequest); the session survives that.
                if (disturbs) {
                    seen.expectState(KeeperState.Disconnected);
                    seen.expectState(KeeperState.SyncConnected);
                }
                Checks.equal("[]", seen.states.toString());
                Checks.that(owner.exists(base + "/e", false) != null, "its ephemeral is gone");
            }
        });
    }

    private void reconnecting() {
        checks.check("reconnect: every kind of watch is brought back, and fires for what was missed", () -> {
            String base = base();
            create(base + "/data", CreateMode.PERSISTENT);
            create(base + "/gone", CreateMode.PERSISTENT);
            create(base + "/parent", CreateMode.PERSISTENT);
            create(base + "/same", CreateMode.PERSISTENT);
            try (Proxy proxy = new Proxy(address)) {
                Events session = new Events();
                try (ZooKeeper away = connect(proxy.address(), 30_000, session)) {
                    session.expectState(KeeperState.SyncConnected);
                    Events data = new Events();
                    Events gone = new Events();
                    Events born = new Events();
                    Events children = new Events();
                    Events same = new Events();
                    Events lasting = new Events();
                    Events recursive = new Events();
                    away.getData(base + "/data", data, null);
                    away.getData(base + "/gone", gone, null);
                    Checks.equal(null, away.exists(base + "/born", born));
                    away.getChildren(base + "/parent", children);
                    away.getData(base + "/same", same, null);
                    away.getChildren(base + "/same", same);
                    away.addWatch(base + "/same", lasting, AddWatchMode.PERSISTENT);
                    away.addWatch(base, recursive, AddWatchMode.PERSISTENT_RECURSIVE);
                    proxy.down();
                    session.expectState(KeeperState.Disconnected);
                    zk.setData(base + "/data", bytes("new"), -1);
                    zk.delete(base + "/gone", -1);
                    create(base + "/born", CreateMode.PERSISTENT);
                    create(base + "/parent/child", CreateMode.PERSISTENT);
                    proxy.up();
                    session.expectState(KeeperState.SyncConnected);
                    data.expect(EventType.NodeDataChanged, base + "/data");
                    gone.expect(EventType.NodeDeleted, base + "/gone");
                    born.expect(EventType.NodeCreated, base + "/born");
                    children.expect(EventType.NodeChildrenChanged, base + "/parent");
                    sync(away, "/");
                    same.expectNone();
                    recursive.drain();
                    zk.setData(base + "/same", bytes("new"), -1);
                    same.expect(EventType.NodeDataChanged, base + "/same");
                    lasting.expect(EventType.NodeDataChanged, base + "/same");
                    recursive.expect(EventType.NodeDataChanged, base + "/same");
                    create(base + "/same/child", CreateMode.PERSISTENT);
                    same.expect(EventType.NodeChildrenChanged, base + "/same");
                    lasting.expect(EventType.NodeChildrenChanged, base + "/same");
                    recursive.expect(EventType.NodeCreated, base + "/same/child");
                }
            }
        });
        checks.check("reconnect: more watches than one packet holds", () -> {
            String base = base();
            int count = 3_000;
            String padding = "x".repeat(100);
            List<Op> ops = new ArrayList<>();
            for (int index = 0; index < count; index++) {
                ops.add(Op.create(base + "/" + padding + index, null, OPEN, CreateMode.PERSISTENT));
            }
            for (int from = 0; from < count; from += 500) {
                zk.multi(ops.subList(from, from + 500));
            }
            try (Proxy proxy = new Proxy(address)) {
                Events session = new Events();
                try (ZooKeeper away = connect(proxy.address(), 30_000, session)) {
                    session.expectState(KeeperState.SyncConnected);
                    Events events = new Events();
                    for (int index = 0; index < count; index++) {
                        away.exists(base + "/" + padding + index, events, (code, path, context, stat) -> {}, null);
                    }
                    away.exists("/", false);
                    proxy.down();
                    session.expectState(KeeperState.Disconnected);
                    zk.setData(base + "/" + padding + 1, bytes("new"), -1);
                    proxy.up();
                    session.expectState(KeeperState.SyncConnected);
                    events.expect(EventType.NodeDataChanged, base + "/" + padding + 1);
                    zk.setData(base + "/" + padding + (count - 1), bytes("new"), -1);
                    events.expect(EventType.NodeDataChanged, base + "/" + padding + (count - 1));
                }
            }
        });
        checks.check("reconnect: authentication is brought back", () -> {
            String base = base();
            try (Proxy proxy = new Proxy(address)) {
                Events session = new Events();
                try (ZooKeeper away = connect(proxy.address(), 30_000, session)) {
                    session.expectState(KeeperState.SyncConnected);
                    away.addAuthInfo("digest", bytes("user:secret"));
                    away.create(base + "/own", bytes("x"), Ids.CREATOR_ALL_ACL, CreateMode.PERSISTENT);
                    proxy.down();
                    session.expectState(KeeperState.Disconnected);
                    proxy.up();
                    session.expectState(KeeperState.SyncConnected);
                    Checks.equal("x", text(away.getData(base + "/own", false, null)));
                }
            }
        });
    }

    private void pipelining() {
        checks.check("pipeline: ten thousand requests of one session are answered in order", () -> {
            String base = base();
            int count = 10_000;
            List<Integer> answers = Collections.synchronizedList(new ArrayList<>());
            AtomicInteger wrong = new AtomicInteger();
            CountDownLatch answered = new CountDownLatch(count);
            for (int index = 0; index < count; index++) {
                int number = index;
                if (index % 2 == 0) {
                    zk.setData(base, bytes("" + number), -1, (code, path, context, stat) -> {
                        answers.add(number);
                        if (code != 0) {
                            wrong.incrementAndGet();
                        }
                        answered.countDown();
                    }, null);
                } else {
                    zk.getData(base, false, (AsyncCallback.DataCallback) (code, path, context, data, stat) -> {
                        answers.add(number);
                        // A session reads its own last write.
                        if (code != 0 || !text(data).equals("" + (number - 1))) {
                            wrong.incrementAndGet();
                        }
                        answered.countDown();
                    }, null);
                }
            }
            Checks.that(answered.await(60, TimeUnit.SECONDS), answered.getCount() + " answers are missing");
            Checks.equal(0, wrong.get());
            for (int index = 0; index < count; index++) {
                Checks.equal(index, answers.get(index));
            }
        });
        checks.check("pipeline: eight sessions count one znode up without losing a step", () -> {
            String base = base();
            zk.setData(base, bytes("0"), -1);
            int sessions = 8;
            int steps = 100;
            List<Thread> threads = new ArrayList<>();
            List<Throwable> failures = Collections.synchronizedList(new ArrayList<>());
            for (int index = 0; index < sessions; index++) {
                Thread thread = new Thread(() -> {
                    try (ZooKeeper own = connect(address, 10_000, event -> {})) {
                        for (int step = 0; step < steps; ) {
                            Stat stat = new Stat();
                            int value = Integer.parseInt(text(own.getData(base, false, stat)));
                            try {
                                own.setData(base, bytes("" + (value + 1)), stat.getVersion());
                                step++;
                            } catch (KeeperException.BadVersionException another) {
                                // Somebody else was first: read again.
                            }
                        }
                    } catch (Throwable failure) {
                        failures.add(failure);
                    }
                });
                thread.start();
                threads.add(thread);
            }
            for (Thread thread : threads) {
                thread.join(60_000);
            }
            Checks.equal(List.of(), failures);
            Checks.equal("" + sessions * steps, text(zk.getData(base, false, null)));
        });
    }

    private void restarts() {
        for (String how : List.of("restart", "kill")) {
            checks.check("restart: after a " + how + " the session, its ephemerals and watches live on", () -> {
                String base = base();
                Events session = new Events();
                try (ZooKeeper own = connect(address, 60_000, session)) {
                    session.expectState(KeeperState.SyncConnected);
                    own.create(base + "/e", bytes("x"), OPEN, CreateMode.EPHEMERAL);
                    Stat before = own.setData(base, bytes("before"), -1);
                    Events events = new Events();
                    own.getData(base, events, null);
                    Checks.want(how);
                    session.expectState(KeeperState.Disconnected);
                    session.expectState(KeeperState.SyncConnected);
                    Checks.equal(List.of(base + "/e"), own.getEphemerals());
                    Stat after = own.exists(base, false);
                    Checks.equal(before.getMzxid(), after.getMzxid());
                    Checks.equal(before.getMtime(), after.getMtime());
                    sync(own, "/");
                    events.expectNone();
                    own.setData(base, bytes("after"), -1);
                    events.expect(EventType.NodeDataChanged, base);
                }
            });
        }
    }

    /** A connected client; one that does not connect fails the check. */
    private static ZooKeeper connect(String address, int timeoutMs, Watcher watcher) throws Exception {
        CountDownLatch connected = new CountDownLatch(1);
        ZKClientConfig config = new ZKClientConfig();
        config.setProperty("zookeeper.sasl.client", "false");
        ZooKeeper client = new ZooKeeper(address, timeoutMs, event -> {
            if (event.getState() == KeeperState.SyncConnected) {
                connected.countDown();
            }
            watcher.process(event);
        }, config);
        Checks.that(connected.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "no connection to " + address);
        return client;
    }

    /** Waits until the server has answered all that was asked before, events included. */
    private static void sync(ZooKeeper client, String path) throws InterruptedException {
        CountDownLatch answered = new CountDownLatch(1);
        client.sync(path, (code, where, context) -> answered.countDown(), null);
        Checks.that(answered.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "no answer to sync");
    }

    /** A fresh znode for one check. */
    private String base() throws Exception {
        return create("/raw-" + bases++, CreateMode.PERSISTENT);
    }

    private String create(String path, CreateMode mode) throws Exception {
        return zk.create(path, new byte[0], OPEN, mode);
    }

    /** An ACL as the client wants it: it asks the list for null, which List.of would not have. */
    private static List<ACL> acl(ACL... entries) {
        return Arrays.asList(entries);
    }

    private static Set<String> identities(List<ClientInfo> infos) {
        return infos.stream().map(info -> info.getAuthScheme() + ":" + info.getUser())
            .collect(Collectors.toCollection(TreeSet::new));
    }

    private static byte[] bytes(String text) {
        return text.getBytes(UTF_8);
    }

    private static String text(byte[] data) {
        return new String(data, UTF_8);
    }

    /** A watcher that remembers. */
    private static final class Events implements Watcher {
        private final BlockingQueue<WatchedEvent> queue = new LinkedBlockingQueue<>();
        private final BlockingQueue<KeeperState> states = new LinkedBlockingQueue<>();

        @Override
        public void process(WatchedEvent event) {
            if (event.getType() == EventType.None) {
                states.add(event.getState());
            } else {
                queue.add(event);
            }
        }

        void expect(EventType type, String path) throws InterruptedException {
            WatchedEvent event = queue.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS);
            Checks.equal(type + " " + path, event == null ? null : event.getType() + " " + event.getPath());
        }

        void expectState(KeeperState state) throws InterruptedException {
            Checks.equal(state, states.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
        }

        void expectNone() {
            Checks.equal("[]", queue.toString());
        }

        void drain() {
            queue.clear();
        }
    }
}
