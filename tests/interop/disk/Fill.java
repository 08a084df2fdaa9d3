import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.FileOutputStream;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Op;
import org.apache.zookeeper.ZooDefs.Ids;
import org.apache.zookeeper.ZooDefs.Perms;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Id;
import org.apache.zookeeper.data.Stat;

/**
 * {@code Fill ADDRESS SEED COUNT ACKNOWLEDGED}: writes until COUNT creates have succeeded, with
 * every kind of transaction, and halts without closing its sessions. Printed: a line {@code session
 * ID PASSWORD} for each of them. Written to the file ACKNOWLEDGED: each path whose creation was
 * acknowledged and that nothing here deletes, as soon as it was.
 */
final class Fill {
    private static final int IN_FLIGHT = 200;
    private static final int SESSIONS = 4;
    private static final long HOUR_MS = 3_600_000;
    private static final List<List<ACL>> ACLS = List.of(
        Ids.OPEN_ACL_UNSAFE,
        Ids.READ_ACL_UNSAFE,
        Arrays.asList(new ACL(Perms.ALL, new Id("digest", "one:AAAAAAAAAAAAAAAAAAAAAAAAAAA="))),
        Arrays.asList(new ACL(Perms.READ | Perms.WRITE, new Id("ip", "10.0.0.0/8")), new ACL(Perms.READ, Ids.ANYONE_ID_UNSAFE)),
        Arrays.asList(new ACL(Perms.ADMIN, new Id("ip", "127.0.0.1")), new ACL(Perms.ALL, new Id("digest", "two:BBBBBBBBBBBBBBBBBBBBBBBBBBB="))));

    private final String base;
    private final long seed;
    private final Random random;
    private final PrintStream acknowledged;
    private final List<ZooKeeper> sessions = new ArrayList<>();
    private final Semaphore room = new Semaphore(IN_FLIGHT);
    private final AtomicInteger created = new AtomicInteger();
    /** Paths that were asked for, of this run and of earlier ones; some may not exist. */
    private final List<String> paths = Collections.synchronizedList(new ArrayList<>());
    /** Those that a deletion may hit. */
    private final List<String> mortal = Collections.synchronizedList(new ArrayList<>());

    private Fill(String base, long seed, PrintStream acknowledged) {
        this.base = base;
        this.seed = seed;
        random = new Random(seed);
        this.acknowledged = acknowledged;
    }

    public static void main(String[] arguments) throws Exception {
        long seed = Long.parseLong(arguments[1]);
        try (PrintStream acknowledged = new PrintStream(new FileOutputStream(arguments[3], true), true, UTF_8)) {
            Fill fill = new Fill("/disk/" + seed, seed, acknowledged);
            fill.run(arguments[0], Integer.parseInt(arguments[2]));
        }
        Runtime.getRuntime().halt(0);
    }

    private void run(String address, int count) throws Exception {
        for (int index = 0; index < SESSIONS; index++) {
            ZooKeeper session = Clients.connect(address);
            sessions.add(session);
            System.out.printf("session %x %s\n", session.getSessionId(), Clients.hex(session.getSessionPasswd()));
        }
        System.out.flush();
        ZooKeeper first = sessions.get(0);
        try {
            first.create("/disk", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        } catch (KeeperException.NodeExistsException earlier) {
            remember(first, "/disk", 2_000);
            paths.removeIf(path -> path.endsWith("/emptied") || path.endsWith("/brief"));
        }
        first.create(base, new byte[0], Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        quota(first);
        departed(address);
        due(first);
        paths.add(base);
        for (int number = 0; created.get() < count; number++) {
            room.acquire();
            write(number);
        }
        if (!room.tryAcquire(IN_FLIGHT, 60, TimeUnit.SECONDS)) {
            throw new IllegalStateException("answers are missing");
        }
    }

    /** Paths of earlier runs, to be changed again. */
    private void remember(ZooKeeper zk, String path, int most) throws Exception {
        for (String child : zk.getChildren(path, false)) {
            if (paths.size() < most) {
                paths.add(path + "/" + child);
                remember(zk, path + "/" + child, most);
            }
        }
    }

    /** A quota on the base, as the command line would write it: its usage is kept by the server. */
    private void quota(ZooKeeper zk) throws Exception {
        String path = "/zookeeper/quota";
        for (String name : (base + "/").substring(1).split("/")) {
            path += "/" + name;
            if (zk.exists(path, false) == null) {
                zk.create(path, null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
            }
        }
        zk.create(path + "/zookeeper_limits", "count=10000000,bytes=-1".getBytes(UTF_8), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        zk.create(path + "/zookeeper_stats", "count=1,bytes=0".getBytes(UTF_8), Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
    }

    /** A session that comes and goes, with ephemerals in two places. */
    private void departed(String address) throws Exception {
        try (ZooKeeper zk = Clients.connect(address)) {
            zk.create(base + "/departed", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
            for (int index = 0; index < 20; index++) {
                zk.create(index % 2 == 0 ? base + "/e" + index : base + "/departed/e" + index, null, Ids.OPEN_ACL_UNSAFE, CreateMode.EPHEMERAL);
            }
        }
    }

    /** What a server that looks for it would reap at once: an emptied container, a TTL gone by. */
    private void due(ZooKeeper zk) throws Exception {
        zk.create(base + "/emptied", null, Ids.OPEN_ACL_UNSAFE, CreateMode.CONTAINER);
        zk.create(base + "/emptied/child", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT);
        zk.delete(base + "/emptied/child", -1);
        zk.create(base + "/brief", null, Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT_WITH_TTL, new Stat(), 1);
    }

    private void write(int number) {
        ZooKeeper zk = sessions.get(random.nextInt(4) == 0 ? random.nextInt(SESSIONS) : 0);
        String parent = any(paths);
        String path = parent + "/" + name(seed + "-" + number);
        List<ACL> acl = ACLS.get(random.nextInt(3) == 0 ? random.nextInt(ACLS.size()) : 0);
        byte[] data = data();
        int kind = random.nextInt(100);
        if (kind < 45) {
            if (path.chars().filter(letter -> letter == '/').count() < 8) {
                paths.add(path);
            }
            boolean dies = random.nextInt(4) == 0;
            if (dies) {
                mortal.add(path);
            }
            create(zk, path, data, acl, CreateMode.PERSISTENT, -1, !dies);
        } else if (kind < 53) {
            create(zk, path + "-", data, acl, CreateMode.PERSISTENT_SEQUENTIAL, -1, true);
        } else if (kind < 59) {
            create(zk, path, data, acl, CreateMode.EPHEMERAL, -1, true);
        } else if (kind < 63) {
            create(zk, path + "-", data, acl, CreateMode.EPHEMERAL_SEQUENTIAL, -1, true);
        } else if (kind < 67) {
            paths.add(path);
            create(zk, path, data, acl, CreateMode.CONTAINER, -1, true);
        } else if (kind < 70) {
            create(zk, path, data, acl, CreateMode.PERSISTENT_WITH_TTL, HOUR_MS + random.nextInt(1000), true);
        } else if (kind < 72) {
            create(zk, path + "-", data, acl, CreateMode.PERSISTENT_SEQUENTIAL_WITH_TTL, HOUR_MS, true);
        } else if (kind < 82) {
            zk.setData(any(paths), data, -1, (code, where, context, stat) -> answered(code), null);
        } else if (kind < 85) {
            zk.setACL(any(paths), acl, -1, (code, where, context, stat) -> answered(code), null);
        } else if (kind < 90) {
            String doomed = mortal.isEmpty() ? base + "/none" : any(mortal);
            zk.delete(doomed, -1, (code, where, context) -> answered(code), null);
        } else if (kind < 96) {
            multi(zk, path, data, acl, true);
        } else if (kind < 98) {
            multi(zk, path, data, acl, false);
        } else {
            // Refused, which is a transaction as well.
            zk.setData(any(paths), data, 1_000_000, (code, where, context, stat) -> answered(code), null);
        }
    }

    private void create(ZooKeeper zk, String path, byte[] data, List<ACL> acl, CreateMode mode, long ttl, boolean lasting) {
        zk.create(path, data, acl, mode, (code, where, context, name, stat) -> {
            if (code == 0) {
                created.incrementAndGet();
                if (lasting) {
                    acknowledged.println(name);
                }
            }
            answered(code);
        }, null, ttl);
    }

    private void multi(ZooKeeper zk, String path, byte[] data, List<ACL> acl, boolean whole) {
        List<Op> ops = new ArrayList<>(List.of(
            Op.create(path, data, acl, CreateMode.PERSISTENT),
            Op.setData(path, data, 0),
            Op.create(path + "/s-", data, acl, CreateMode.PERSISTENT_SEQUENTIAL),
            Op.create(path + "/e", data, acl, CreateMode.EPHEMERAL),
            Op.create(path + "/c", data, acl, CreateMode.CONTAINER),
            Op.create(path + "/t", data, acl, CreateMode.PERSISTENT_WITH_TTL, HOUR_MS),
            Op.create(path + "/gone", data, acl, CreateMode.PERSISTENT),
            Op.delete(path + "/gone", 0),
            Op.check(path, whole ? 1 : 7)));
        zk.multi(ops, (code, where, context, results) -> {
            if (code == 0) {
                created.addAndGet(5);
                acknowledged.println(path + "/c");
            }
            answered(code);
        }, null);
    }

    /** Refusals are part of the load; a lost connection ends it. */
    private void answered(int code) {
        KeeperException.Code found = KeeperException.Code.get(code);
        if (found == KeeperException.Code.CONNECTIONLOSS || found == KeeperException.Code.SESSIONEXPIRED) {
            System.out.println("lost: " + found);
            System.out.flush();
            Runtime.getRuntime().halt(4);
        }
        room.release();
    }

    private String any(List<String> from) {
        synchronized (from) {
            return from.get(random.nextInt(from.size()));
        }
    }

    private String name(String number) {
        return random.nextInt(50) == 0 ? "\u00fcml\u00e4ut-\u4e16-" + number : "n" + number;
    }

    private byte[] data() {
        int kind = random.nextInt(200);
        if (kind < 4) {
            return null;
        }
        byte[] data = new byte[kind < 8 ? 0 : kind == 199 ? 20_000 : random.nextInt(200)];
        random.nextBytes(data);
        return data;
    }
}
