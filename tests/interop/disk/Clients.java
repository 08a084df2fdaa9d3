import static java.nio.charset.StandardCharsets.UTF_8;

import java.security.MessageDigest;
import java.util.Formatter;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.client.ZKClientConfig;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Stat;

/** What the programs of this suite share: connecting, and how a znode is written down. */
final class Clients {
    /** Long enough for every session to outlive the suite. */
    static final int SESSION_MS = 600_000;
    private static final int CONNECT_MS = 20_000;

    private Clients() {}

    /** A connected session that may do everything, new or (by id and password) an old one's. */
    static ZooKeeper connect(String address, long id, byte[] password) throws Exception {
        CountDownLatch decided = new CountDownLatch(1);
        KeeperState[] state = new KeeperState[1];
        ZKClientConfig config = new ZKClientConfig();
        config.setProperty("zookeeper.sasl.client", "false");
        org.apache.zookeeper.Watcher watcher = event -> {
            if (event.getState() != KeeperState.Disconnected) {
                state[0] = event.getState();
                decided.countDown();
            }
        };
        ZooKeeper client = id == 0
            ? new ZooKeeper(address, SESSION_MS, watcher, config)
            : new ZooKeeper(address, SESSION_MS, watcher, id, password, false,
                new org.apache.zookeeper.client.StaticHostProvider(
                    new org.apache.zookeeper.client.ConnectStringParser(address).getServerAddresses()),
                config);
        if (!decided.await(CONNECT_MS, TimeUnit.MILLISECONDS) || state[0] != KeeperState.SyncConnected) {
            throw new IllegalStateException("session 0x" + Long.toHexString(id) + " at " + address + ": " + state[0]);
        }
        client.addAuthInfo("digest", "super:test".getBytes(UTF_8));
        return client;
    }

    static ZooKeeper connect(String address) throws Exception {
        return connect(address, 0, null);
    }

    /** A znode in one line, as every client sees it; lines of equal znodes are equal. */
    static String line(String path, byte[] data, Stat stat, List<ACL> acl) throws Exception {
        StringBuilder line = new StringBuilder(path);
        line.append(" data=").append(data == null ? "null" : data.length + ":" + digest(data));
        line.append(String.format(
            " czxid=%x mzxid=%x pzxid=%x ctime=%d mtime=%d version=%d cversion=%d aversion=%d owner=%x length=%d children=%d",
            stat.getCzxid(), stat.getMzxid(), stat.getPzxid(), stat.getCtime(), stat.getMtime(), stat.getVersion(),
            stat.getCversion(), stat.getAversion(), stat.getEphemeralOwner(), stat.getDataLength(), stat.getNumChildren()));
        for (ACL entry : acl) {
            line.append(" ").append(entry.getId().getScheme()).append(":").append(entry.getId().getId())
                .append(":").append(entry.getPerms());
        }
        return line.toString();
    }

    private static String digest(byte[] data) throws Exception {
        Formatter text = new Formatter();
        byte[] hash = MessageDigest.getInstance("SHA-256").digest(data);
        for (int index = 0; index < 8; index++) {
            text.format("%02x", hash[index]);
        }
        return text.toString();
    }

    static String hex(byte[] bytes) {
        Formatter text = new Formatter();
        for (byte one : bytes) {
            text.format("%02x", one);
        }
        return text.toString();
    }

    static byte[] bytes(String hex) {
        byte[] bytes = new byte[hex.length() / 2];
        for (int index = 0; index < bytes.length; index++) {
            bytes[index] = (byte) Integer.parseInt(hex.substring(2 * index, 2 * index + 2), 16);
        }
        return bytes;
    }
}
