import java.io.File;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.zip.CRC32;
import org.apache.zookeeper.data.Stat;
import org.apache.zookeeper.data.StatPersisted;
import org.apache.zookeeper.server.DataNode;
import org.apache.zookeeper.server.DataTree;
import org.apache.zookeeper.server.persistence.FileTxnSnapLog;

/**
 * {@code Inspect DIRECTORY}: what ZooKeeper's own code reads from a data directory nobody has open:
 * every znode as {@link Dump} writes it, then what clients do not see. ZooKeeper checks the digest
 * of each transaction meanwhile; a mismatch ends the program with 3.
 */
final class Inspect {
    private Inspect() {}

    public static void main(String[] arguments) throws Exception {
        File directory = new File(arguments[0]);
        DataTree tree = new DataTree();
        List<Long> mismatches = new ArrayList<>();
        tree.addDigestWatcher(mismatches::add);
        Map<Long, Integer> sessions = new ConcurrentHashMap<>();
        FileTxnSnapLog log = new FileTxnSnapLog(directory, directory);
        int[] txns = new int[2];
        long zxid = log.restore(tree, sessions, (header, txn, digest) -> {
            txns[0]++;
            if (digest != null) {
                txns[1]++;
            }
        });
        List<String> lines = new ArrayList<>();
        List<String> stored = new ArrayList<>();
        long[] digest = new long[1];
        walk(tree, "/", lines, stored, digest);
        Collections.sort(lines);
        Collections.sort(stored);
        StringBuilder text = new StringBuilder();
        lines.forEach(line -> text.append(line).append('\n'));
        stored.forEach(line -> text.append("#owner ").append(line).append('\n'));
        new TreeMap<>(sessions).forEach((id, timeout) -> text.append(
            String.format("#session %x %d %s\n", id, timeout, new TreeSet<>(tree.getEphemerals(id)))));
        text.append(String.format("#zxid %x\n", zxid));
        text.append(String.format("#digest %x\n", tree.getTreeDigest()));
        text.append(String.format("#replayed %d txns, %d with a digest\n", txns[0], txns[1]));
        System.out.print(text);
        System.out.flush();
        if (!mismatches.isEmpty()) {
            System.err.printf("digests do not match at zxid 0x%x and %d more\n", mismatches.get(0), mismatches.size() - 1);
            Runtime.getRuntime().halt(3);
        }
        if (digest[0] != tree.getTreeDigest()) {
            System.err.printf("the tree's digest is %x, kept as %x\n", digest[0], tree.getTreeDigest());
            Runtime.getRuntime().halt(3);
        }
        Runtime.getRuntime().halt(0);
    }

    private static void walk(DataTree tree, String path, List<String> lines, List<String> stored, long[] digest) throws Exception {
        DataNode node = tree.getNode(path);
        Stat stat = new Stat();
        node.copyStat(stat);
        lines.add(Clients.line(path, node.getData(), stat, tree.getACL(node)));
        StatPersisted kept = node.stat;
        if (kept.getEphemeralOwner() != stat.getEphemeralOwner()) {
            // A container, or a TTL znode with its TTL.
            stored.add(String.format("%s %x", path, kept.getEphemeralOwner()));
        }
        if (!path.startsWith("/zookeeper/")) {
            digest[0] += digest(path.equals("/") ? "" : path, node.getData(), kept);
        }
        for (String child : node.getChildren()) {
            walk(tree, path.equals("/") ? "/" + child : path + "/" + child, lines, stored, digest);
        }
    }

    /** A znode's part of the tree's digest (DigestCalculator.calculateDigest), computed afresh. */
    private static long digest(String path, byte[] data, StatPersisted stat) {
        CRC32 crc = new CRC32();
        // In the JVM's charset, as ZooKeeper does it.
        crc.update(path.getBytes());
        if (data != null) {
            crc.update(data);
        }
        ByteBuffer buffer = ByteBuffer.allocate(60);
        buffer.putLong(stat.getCzxid()).putLong(stat.getMzxid()).putLong(stat.getPzxid());
        buffer.putLong(stat.getCtime()).putLong(stat.getMtime());
        buffer.putInt(stat.getVersion()).putInt(stat.getCversion()).putInt(stat.getAversion());
        buffer.putLong(stat.getEphemeralOwner());
        crc.update(buffer.array());
        return crc.getValue();
    }
}
