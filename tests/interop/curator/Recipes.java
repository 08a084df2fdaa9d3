import static java.nio.charset.StandardCharsets.UTF_8;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.api.transaction.CuratorTransactionResult;
import org.apache.curator.framework.recipes.atomic.AtomicValue;
import org.apache.curator.framework.recipes.atomic.DistributedAtomicLong;
import org.apache.curator.framework.recipes.barriers.DistributedBarrier;
import org.apache.curator.framework.recipes.barriers.DistributedDoubleBarrier;
import org.apache.curator.framework.recipes.cache.ChildData;
import org.apache.curator.framework.recipes.cache.CuratorCache;
import org.apache.curator.framework.recipes.cache.CuratorCacheListener;
import org.apache.curator.framework.recipes.cache.NodeCache;
import org.apache.curator.framework.recipes.cache.PathChildrenCache;
import org.apache.curator.framework.recipes.cache.PathChildrenCacheEvent;
import org.apache.curator.framework.recipes.cache.TreeCache;
import org.apache.curator.framework.recipes.cache.TreeCacheEvent;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.leader.LeaderSelector;
import org.apache.curator.framework.recipes.leader.LeaderSelectorListenerAdapter;
import org.apache.curator.framework.recipes.locks.InterProcessMultiLock;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessReadWriteLock;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreMutex;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreV2;
import org.apache.curator.framework.recipes.locks.Lease;
import org.apache.curator.framework.recipes.nodes.GroupMember;
import org.apache.curator.framework.recipes.nodes.PersistentNode;
import org.apache.curator.framework.recipes.nodes.PersistentTtlNode;
import org.apache.curator.framework.recipes.queue.DistributedDelayQueue;
import org.apache.curator.framework.recipes.queue.DistributedPriorityQueue;
import org.apache.curator.framework.recipes.queue.DistributedQueue;
import org.apache.curator.framework.recipes.queue.QueueBuilder;
import org.apache.curator.framework.recipes.queue.QueueConsumer;
import org.apache.curator.framework.recipes.queue.QueueSerializer;
import org.apache.curator.framework.recipes.queue.SimpleDistributedQueue;
import org.apache.curator.framework.recipes.shared.SharedCount;
import org.apache.curator.framework.recipes.watch.PersistentWatcher;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.curator.retry.RetryForever;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooKeeper;
import org.apache.zookeeper.data.Stat;

/** Curator's recipes against a running server, each with several clients where it is about them. */
final class Recipes {
    private static final int SESSION_MS = 10_000;

    private final String address;
    private final Checks checks = new Checks();
    private final ExecutorService threads = Executors.newCachedThreadPool();
    private final List<CuratorFramework> clients = new ArrayList<>();
    private int bases;

    private Recipes(String address) {
        this.address = address;
    }

    public static void main(String[] arguments) throws Exception {
        new Recipes(arguments[0]).run();
    }

    private void run() {
        locks();
        semaphores();
        leaders();
        barriers();
        nodes();
        caches();
        queues();
        numbers();
        framework();
        connection();
        checks.done();
    }

    private void locks() {
        check("InterProcessMutex: one holder at a time, whatever the client", () -> {
            String base = base();
            exclusive(base, client -> {
                InterProcessMutex mutex = new InterProcessMutex(client, base + "/lock");
                return section -> {
                    mutex.acquire();
                    try {
                        section.run();
                    } finally {
                        mutex.release();
                    }
                };
            });
        });
        check("InterProcessMutex: taken again by its thread, and waited for no longer than asked", () -> {
            String base = base();
            InterProcessMutex mutex = new InterProcessMutex(client(), base + "/lock");
            InterProcessMutex other = new InterProcessMutex(client(), base + "/lock");
            mutex.acquire();
            mutex.acquire();
            mutex.release();
            Checks.that(!other.acquire(300, TimeUnit.MILLISECONDS), "two hold it");
            mutex.release();
            Checks.that(other.acquire(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "nobody holds it, yet it is not given");
            other.release();
        });
        check("InterProcessMutex: a holder whose session dies lets go", () -> {
            String base = base();
            CuratorFramework doomed = client();
            new InterProcessMutex(doomed, base + "/lock").acquire();
            InterProcessMutex heir = new InterProcessMutex(client(), base + "/lock");
            Future<Boolean> acquired = threads.submit(() -> heir.acquire(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
            expire(doomed);
            Checks.that(acquired.get(), "the heir waits on");
        });
        check("InterProcessReadWriteLock: readers together, a writer alone", () -> {
            String base = base();
            InterProcessReadWriteLock one = new InterProcessReadWriteLock(client(), base + "/lock");
            InterProcessReadWriteLock two = new InterProcessReadWriteLock(client(), base + "/lock");
            one.readLock().acquire();
            Checks.that(two.readLock().acquire(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "readers exclude each other");
            Checks.that(!two.writeLock().acquire(300, TimeUnit.MILLISECONDS), "a writer beside a reader");
            two.readLock().release();
            one.readLock().release();
            Checks.that(two.writeLock().acquire(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "no writer although none reads");
            Checks.that(!one.readLock().acquire(300, TimeUnit.MILLISECONDS), "a reader beside a writer");
            two.writeLock().release();
        });
        check("InterProcessSemaphoreMutex and InterProcessMultiLock", () -> {
            String base = base();
            CuratorFramework one = client();
            InterProcessMultiLock both = new InterProcessMultiLock(List.of(
                new InterProcessMutex(one, base + "/a"), new InterProcessSemaphoreMutex(one, base + "/b")));
            both.acquire();
            InterProcessSemaphoreMutex second = new InterProcessSemaphoreMutex(client(), base + "/b");
            Checks.that(!second.acquire(300, TimeUnit.MILLISECONDS), "two hold it");
            both.release();
            Checks.that(second.acquire(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "nobody holds it, yet it is not given");
            second.release();
        });
    }

    private void semaphores() {
        check("InterProcessSemaphoreV2: never more leases than there are, and all used", () -> {
            String base = base();
            int leases = 3;
            AtomicInteger held = new AtomicInteger();
            AtomicInteger most = new AtomicInteger();
            List<Future<?>> contenders = new ArrayList<>();
            for (int index = 0; index < 8; index++) {
                InterProcessSemaphoreV2 semaphore = new InterProcessSemaphoreV2(client(), base + "/semaphore", leases);
                contenders.add(threads.submit(() -> {
                    for (int round = 0; round < 5; round++) {
                        Lease lease = semaphore.acquire();
                        most.accumulateAndGet(held.incrementAndGet(), Math::max);
                        Thread.sleep(20);
                        held.decrementAndGet();
                        semaphore.returnLease(lease);
                    }
                    return null;
                }));
            }
            for (Future<?> contender : contenders) {
                contender.get(60, TimeUnit.SECONDS);
            }
            Checks.equal(leases, most.get());
        });
    }

    private void leaders() {
        check("LeaderLatch: one leader, and another when it closes or its session dies", () -> {
            String base = base();
            List<CuratorFramework> members = List.of(client(), client(), client());
            List<LeaderLatch> latches = new ArrayList<>();
            for (CuratorFramework member : members) {
                LeaderLatch latch = new LeaderLatch(member, base + "/latch", "member-" + latches.size());
                latch.start();
                latches.add(latch);
            }
            Checks.until("there is a leader", () -> leading(latches) == 1);
            LeaderLatch first = latches.stream().filter(LeaderLatch::hasLeadership).findFirst().get();
            Checks.equal(first.getId(), first.getLeader().getId());
            Checks.until("all take part", () -> first.getParticipants().size() == 3);
            CuratorFramework member = members.get(latches.indexOf(first));
            expire(member);
            Checks.until("another leads", () -> leading(latches) == 1 && !first.hasLeadership());
            LeaderLatch second = latches.stream().filter(LeaderLatch::hasLeadership).findFirst().get();
            latches.remove(second);
            second.close();
            Checks.until("a third leads", () -> leading(latches) == 1);
            for (LeaderLatch latch : latches) {
                latch.close();
            }
        });
        check("LeaderSelector: each in its turn, one at a time", () -> {
            String base = base();
            AtomicInteger leading = new AtomicInteger();
            AtomicInteger most = new AtomicInteger();
            Map<Integer, Integer> turns = new ConcurrentHashMap<>();
            List<LeaderSelector> selectors = new ArrayList<>();
            for (int index = 0; index < 3; index++) {
                int number = index;
                LeaderSelector selector = new LeaderSelector(client(), base + "/selector", new LeaderSelectorListenerAdapter() {
                    @Override
                    public void takeLeadership(CuratorFramework client) throws Exception {
                        most.accumulateAndGet(leading.incrementAndGet(), Math::max);
                        Thread.sleep(10);
                        leading.decrementAndGet();
                        turns.merge(number, 1, Integer::sum);
                    }
                });
                selector.autoRequeue();
                selectors.add(selector);
            }
            selectors.forEach(LeaderSelector::start);
            Checks.until("each has led five times", () ->
                turns.size() == 3 && turns.values().stream().allMatch(count -> count >= 5));
            selectors.forEach(LeaderSelector::close);
            Checks.equal(1, most.get());
        });
    }

    private void barriers() {
        check("DistributedBarrier: all wait until it is taken away", () -> {
            String base = base();
            DistributedBarrier barrier = new DistributedBarrier(client(), base + "/barrier");
            barrier.setBarrier();
            AtomicInteger through = new AtomicInteger();
            List<Future<?>> waiting = new ArrayList<>();
            for (int index = 0; index < 4; index++) {
                DistributedBarrier own = new DistributedBarrier(client(), base + "/barrier");
                waiting.add(threads.submit(() -> {
                    own.waitOnBarrier();
                    through.incrementAndGet();
                    return null;
                }));
            }
            Checks.that(!new DistributedBarrier(client(), base + "/barrier").waitOnBarrier(300, TimeUnit.MILLISECONDS), "no barrier");
            Checks.equal(0, through.get());
            barrier.removeBarrier();
            for (Future<?> one : waiting) {
                one.get(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS);
            }
        });
        check("DistributedDoubleBarrier: all enter together and leave together", () -> {
            String base = base();
            int members = 5;
            AtomicInteger arrived = new AtomicInteger();
            AtomicInteger leaving = new AtomicInteger();
            List<Future<?>> runs = new ArrayList<>();
            for (int index = 0; index < members; index++) {
                DistributedDoubleBarrier barrier = new DistributedDoubleBarrier(client(), base + "/barrier", members);
                int delay = 40 * index;
                runs.add(threads.submit(() -> {
                    Thread.sleep(delay);
                    arrived.incrementAndGet();
                    Checks.that(barrier.enter(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "not entered");
                    Checks.equal(members, arrived.get());
                    Thread.sleep(delay);
                    leaving.incrementAndGet();
                    Checks.that(barrier.leave(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "not left");
                    Checks.equal(members, leaving.get());
                    return null;
                }));
            }
            for (Future<?> run : runs) {
                run.get(2 * Checks.DEADLINE_MS, TimeUnit.MILLISECONDS);
            }
        });
    }

    private void nodes() {
        check("PersistentNode: comes back when deleted, and in its client's next session", () -> {
            String base = base();
            CuratorFramework owner = client();
            CuratorFramework other = client();
            PersistentNode node = new PersistentNode(owner, CreateMode.EPHEMERAL, false, base + "/node", bytes("data"));
            node.start();
            Checks.that(node.waitForInitialCreate(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "not created");
            long first = other.checkExists().forPath(base + "/node").getCzxid();
            other.delete().forPath(base + "/node");
            Checks.until("it is back", () -> czxid(other, base + "/node") > first);
            long second = czxid(other, base + "/node");
            long session = owner.getZookeeperClient().getZooKeeper().getSessionId();
            expire(owner);
            Checks.until("it is back in a new session", () -> czxid(other, base + "/node") > second
                && other.checkExists().forPath(base + "/node").getEphemeralOwner() != session);
            node.close();
            Checks.until("it is gone", () -> czxid(other, base + "/node") == 0);
        });
        check("PersistentTtlNode: outlives its TTL while it is kept, and not for long after", () -> {
            String base = base();
            CuratorFramework other = client();
            PersistentTtlNode node = new PersistentTtlNode(client(), base + "/ttl", 800, bytes("data"));
            node.start();
            Checks.that(node.waitForInitialCreate(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "not created");
            long created = czxid(other, base + "/ttl");
            for (int round = 0; round < 20; round++) {
                Thread.sleep(150);
                Checks.equal(created, czxid(other, base + "/ttl"));
            }
            node.close();
            Checks.until("it is gone", () -> czxid(other, base + "/ttl") == 0);
        });
        check("GroupMember: members know each other, and who has left", () -> {
            String base = base();
            GroupMember one = new GroupMember(client(), base + "/group", "one", bytes("1"));
            GroupMember two = new GroupMember(client(), base + "/group", "two", bytes("2"));
            one.start();
            two.start();
            Checks.until("both are seen", () -> one.getCurrentMembers().keySet().equals(Set.of("one", "two"))
                && two.getCurrentMembers().keySet().equals(Set.of("one", "two")));
            two.close();
            Checks.until("one is alone", () -> one.getCurrentMembers().keySet().equals(Set.of("one")));
            one.close();
        });
    }

    private void caches() {
        check("CuratorCache: equal to the tree after a thousand changes, some behind its back", () -> {
            String base = base();
            try (Proxy proxy = new Proxy(address)) {
                CuratorFramework reader = client(proxy.address());
                CuratorFramework writer = client();
                CuratorCache cache = CuratorCache.build(reader, base);
                CountDownLatch initialized = new CountDownLatch(1);
                cache.listenable().addListener(CuratorCacheListener.builder().forInitialized(initialized::countDown).build());
                cache.start();
                Checks.that(initialized.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "not initialized");
                BlockingQueue<ConnectionState> states = states(reader);
                Random random = new Random(42);
                for (int step = 0; step < 1000; step++) {
                    if (step == 400) {
                        proxy.down();
                        Checks.equal(ConnectionState.SUSPENDED, states.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
                    }
                    if (step == 700) {
                        proxy.up();
                        Checks.equal(ConnectionState.RECONNECTED, states.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
                    }
                    change(writer, base, random);
                }
                Map<String, String> expected = tree(writer, base);
                Checks.until("the cache is equal to the tree", () -> {
                    Map<String, String> found = new TreeMap<>();
                    cache.stream().forEach(data -> found.put(data.getPath(), text(data.getData())));
                    return expected.equals(found);
                });
                cache.close();
            }
        });
        check("TreeCache: equal to the tree after a thousand changes", () -> {
            String base = base();
            CuratorFramework writer = client();
            TreeCache cache = new TreeCache(client(), base);
            CountDownLatch initialized = new CountDownLatch(1);
            cache.getListenable().addListener((client, event) -> {
                if (event.getType() == TreeCacheEvent.Type.INITIALIZED) {
                    initialized.countDown();
                }
            });
            cache.start();
            Checks.that(initialized.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "not initialized");
            Random random = new Random(7);
            for (int step = 0; step < 1000; step++) {
                change(writer, base, random);
            }
            Map<String, String> expected = tree(writer, base);
            Checks.until("the cache is equal to the tree", () -> {
                Map<String, String> found = new TreeMap<>();
                collect(cache, base, found);
                return expected.equals(found);
            });
            cache.close();
        });
        check("PathChildrenCache: every child that comes, changes and goes", () -> {
            String base = base();
            CuratorFramework writer = client();
            PathChildrenCache cache = new PathChildrenCache(client(), base, true);
            BlockingQueue<String> events = new LinkedBlockingQueue<>();
            cache.getListenable().addListener((client, event) -> {
                if (event.getType() != PathChildrenCacheEvent.Type.CONNECTION_RECONNECTED) {
                    events.add(event.getType() + " " + event.getData().getPath() + " " + text(event.getData().getData()));
                }
            });
            cache.start(PathChildrenCache.StartMode.BUILD_INITIAL_CACHE);
            writer.create().forPath(base + "/a", bytes("1"));
            Checks.equal("CHILD_ADDED " + base + "/a 1", events.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
            writer.setData().forPath(base + "/a", bytes("2"));
            Checks.equal("CHILD_UPDATED " + base + "/a 2", events.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
            writer.delete().forPath(base + "/a");
            Checks.equal("CHILD_REMOVED " + base + "/a 2", events.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
            cache.close();
        });
        check("NodeCache: the znode's data, from before it is there until it is gone", () -> {
            String base = base();
            CuratorFramework writer = client();
            NodeCache cache = new NodeCache(client(), base + "/node");
            cache.start(true);
            Checks.equal(null, cache.getCurrentData());
            writer.create().forPath(base + "/node", bytes("1"));
            Checks.until("it is there", () -> cache.getCurrentData() != null && text(cache.getCurrentData().getData()).equals("1"));
            writer.setData().forPath(base + "/node", bytes("2"));
            Checks.until("it has changed", () -> text(cache.getCurrentData().getData()).equals("2"));
            writer.delete().forPath(base + "/node");
            Checks.until("it is gone", () -> cache.getCurrentData() == null);
            cache.close();
        });
        check("PersistentWatcher: set again after a reconnect", () -> {
            String base = base();
            CuratorFramework writer = client();
            try (Proxy proxy = new Proxy(address)) {
                CuratorFramework reader = client(proxy.address());
                BlockingQueue<String> paths = new LinkedBlockingQueue<>();
                PersistentWatcher watcher = new PersistentWatcher(reader, base, true);
                watcher.getListenable().addListener(event -> {
                    if (event.getPath() != null) {
                        paths.add(event.getType() + " " + event.getPath());
                    }
                });
                CountDownLatch set = new CountDownLatch(1);
                watcher.getResetListenable().addListener(set::countDown);
                watcher.start();
                Checks.that(set.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "not set");
                writer.create().forPath(base + "/a");
                Checks.equal("NodeCreated " + base + "/a", paths.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
                BlockingQueue<ConnectionState> states = states(reader);
                proxy.down();
                Checks.equal(ConnectionState.SUSPENDED, states.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
                proxy.up();
                Checks.equal(ConnectionState.RECONNECTED, states.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
                writer.create().forPath(base + "/b");
                Checks.until("the new znode is seen", () -> paths.contains("NodeCreated " + base + "/b"));
                watcher.close();
            }
        });
    }

    private void queues() {
        check("DistributedQueue: each item once, in order, to one of two consumers", () -> {
            String base = base();
            List<String> taken = Collections.synchronizedList(new ArrayList<>());
            DistributedQueue<String> producer = QueueBuilder.builder(client(), null, STRINGS, base + "/queue").buildQueue();
            producer.start();
            for (int index = 0; index < 100; index++) {
                producer.put("item-" + index);
            }
            producer.flushPuts(10, TimeUnit.SECONDS);
            DistributedQueue<String> one = QueueBuilder.builder(client(), consumer(taken), STRINGS, base + "/queue").lockPath(base + "/locks").buildQueue();
            DistributedQueue<String> two = QueueBuilder.builder(client(), consumer(taken), STRINGS, base + "/queue").lockPath(base + "/locks").buildQueue();
            one.start();
            two.start();
            Checks.until("all are taken", () -> taken.size() >= 100);
            Set<String> expected = new HashSet<>();
            for (int index = 0; index < 100; index++) {
                expected.add("item-" + index);
            }
            Checks.equal(100, taken.size());
            Checks.equal(expected, new HashSet<>(taken));
            one.close();
            two.close();
            producer.close();
        });
        check("DistributedPriorityQueue and DistributedDelayQueue: the lower and the earlier first", () -> {
            String base = base();
            List<String> taken = Collections.synchronizedList(new ArrayList<>());
            DistributedPriorityQueue<String> producer = QueueBuilder.builder(client(), null, STRINGS, base + "/priority").buildPriorityQueue(0);
            producer.start();
            producer.put("last", 10);
            producer.put("first", -10);
            producer.put("middle", 0);
            producer.flushPuts(10, TimeUnit.SECONDS);
            DistributedPriorityQueue<String> priority = QueueBuilder.builder(client(), consumer(taken), STRINGS, base + "/priority").buildPriorityQueue(0);
            priority.start();
            Checks.until("all are taken", () -> taken.size() == 3);
            Checks.equal(List.of("first", "middle", "last"), taken);
            List<String> delayed = Collections.synchronizedList(new ArrayList<>());
            DistributedDelayQueue<String> delay = QueueBuilder.builder(client(), consumer(delayed), STRINGS, base + "/delay").buildDelayQueue();
            delay.start();
            long now = System.currentTimeMillis();
            delay.put("later", now + 1200);
            delay.put("sooner", now + 400);
            Checks.until("both are taken", () -> delayed.size() == 2);
            Checks.equal(List.of("sooner", "later"), delayed);
            Checks.that(System.currentTimeMillis() >= now + 1200, "too early");
            priority.close();
            producer.close();
            delay.close();
        });
        check("SimpleDistributedQueue: in order, and waited for", () -> {
            String base = base();
            SimpleDistributedQueue producer = new SimpleDistributedQueue(client(), base + "/simple");
            SimpleDistributedQueue consumer = new SimpleDistributedQueue(client(), base + "/simple");
            Future<byte[]> first = threads.submit(consumer::take);
            producer.offer(bytes("1"));
            Checks.equal("1", text(first.get(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS)));
            producer.offer(bytes("2"));
            producer.offer(bytes("3"));
            Checks.equal("2", text(consumer.peek()));
            Checks.equal("2", text(consumer.poll()));
            Checks.equal("3", text(consumer.poll(5, TimeUnit.SECONDS)));
            Checks.equal(null, consumer.poll());
        });
    }

    private void numbers() {
        check("DistributedAtomicLong: five clients count without losing a step", () -> {
            String base = base();
            List<Future<?>> runs = new ArrayList<>();
            AtomicInteger steps = new AtomicInteger();
            for (int index = 0; index < 5; index++) {
                DistributedAtomicLong number = new DistributedAtomicLong(client(), base + "/long", new RetryForever(5));
                runs.add(threads.submit(() -> {
                    for (int step = 0; step < 40; step++) {
                        AtomicValue<Long> value = number.increment();
                        if (value.succeeded()) {
                            steps.incrementAndGet();
                        }
                    }
                    return null;
                }));
            }
            for (Future<?> run : runs) {
                run.get(60, TimeUnit.SECONDS);
            }
            DistributedAtomicLong number = new DistributedAtomicLong(client(), base + "/long", new RetryForever(5));
            Checks.equal(200, steps.get());
            Checks.equal(200L, number.get().postValue());
            Checks.that(number.compareAndSet(200L, 7L).succeeded(), "not set");
            Checks.that(!number.compareAndSet(200L, 8L).succeeded(), "set although it was 7");
        });
        check("SharedCount: a change is seen by all, and versions hold off the slower", () -> {
            String base = base();
            SharedCount one = new SharedCount(client(), base + "/count", 0);
            SharedCount two = new SharedCount(client(), base + "/count", 0);
            one.start();
            two.start();
            one.setCount(41);
            Checks.until("the other sees it", () -> two.getCount() == 41);
            Checks.that(two.trySetCount(two.getVersionedValue(), 42), "not set");
            Checks.until("the first sees it", () -> one.getCount() == 42);
            one.close();
            two.close();
        });
    }

    private void framework() {
        check("transaction: all or nothing", () -> {
            String base = base();
            CuratorFramework client = client();
            List<CuratorTransactionResult> results = client.transaction().forOperations(
                client.transactionOp().create().forPath(base + "/a", bytes("1")),
                client.transactionOp().setData().withVersion(0).forPath(base + "/a", bytes("2")),
                client.transactionOp().check().withVersion(1).forPath(base + "/a"),
                client.transactionOp().create().withMode(CreateMode.PERSISTENT_SEQUENTIAL).forPath(base + "/a/s-"),
                client.transactionOp().create().forPath(base + "/b"),
                client.transactionOp().delete().forPath(base + "/b"));
            Checks.equal(6, results.size());
            Checks.equal(base + "/a/s-0000000000", results.get(3).getResultPath());
            Checks.fails(KeeperException.NodeExistsException.class, () -> client.transaction().forOperations(
                client.transactionOp().create().forPath(base + "/c"),
                client.transactionOp().create().forPath(base + "/a")));
            Checks.equal(List.of("a"), client.getChildren().forPath(base));
        });
        check("create: parents as containers, with protection, with a TTL, or set if there", () -> {
            String base = base();
            CuratorFramework client = client();
            client.create().creatingParentContainersIfNeeded().forPath(base + "/c/d/e");
            client.delete().forPath(base + "/c/d/e");
            Checks.until("the containers are gone", () -> czxid(client, base + "/c") == 0);
            String path = client.create().withProtection().withMode(CreateMode.EPHEMERAL_SEQUENTIAL).forPath(base + "/p-");
            Checks.that(path.startsWith(base + "/_c_") && path.endsWith("-p-" + path.substring(path.length() - 10)), path);
            client.create().withTtl(300).withMode(CreateMode.PERSISTENT_WITH_TTL).forPath(base + "/ttl");
            Checks.until("it is gone", () -> czxid(client, base + "/ttl") == 0);
            client.create().orSetData().forPath(base, bytes("new"));
            Checks.equal("new", text(client.getData().forPath(base)));
            client.create().creatingParentsIfNeeded().forPath(base + "/x/y/z");
            client.delete().guaranteed().deletingChildrenIfNeeded().forPath(base + "/x");
            Checks.equal(0L, czxid(client, base + "/x"));
            client.delete().quietly().forPath(base + "/x");
        });
        check("namespace, compression and background operations", () -> {
            String base = base();
            CuratorFramework client = client();
            CuratorFramework inside = client.usingNamespace(base.substring(1));
            inside.create().forPath("/a", bytes("1"));
            Checks.equal("1", text(client.getData().forPath(base + "/a")));
            client.create().compressed().forPath(base + "/z", bytes("x".repeat(10_000)));
            Checks.equal(10_000, client.getData().decompressed().forPath(base + "/z").length);
            CountDownLatch answered = new CountDownLatch(100);
            for (int index = 0; index < 100; index++) {
                client.create().inBackground((framework, event) -> {
                    if (event.getResultCode() == 0) {
                        answered.countDown();
                    }
                }).forPath(base + "/background-" + index);
            }
            Checks.that(answered.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), answered.getCount() + " are not answered");
            client.sync().forPath(base);
        });
    }

    private void connection() {
        check("connection: suspended, then back in the same session", () -> {
            String base = base();
            try (Proxy proxy = new Proxy(address)) {
                CuratorFramework client = client(proxy.address());
                client.create().withMode(CreateMode.EPHEMERAL).forPath(base + "/e");
                long session = client.getZookeeperClient().getZooKeeper().getSessionId();
                BlockingQueue<ConnectionState> states = states(client);
                proxy.down();
                Checks.equal(ConnectionState.SUSPENDED, states.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
                proxy.up();
                Checks.equal(ConnectionState.RECONNECTED, states.poll(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS));
                Checks.equal(session, client.getZookeeperClient().getZooKeeper().getSessionId());
                Checks.equal(session, client.checkExists().forPath(base + "/e").getEphemeralOwner());
            }
        });
        check("connection: its session killed, lost, and back in another", () -> {
            String base = base();
            CuratorFramework client = client();
            client.create().withMode(CreateMode.EPHEMERAL).forPath(base + "/e");
            long session = client.getZookeeperClient().getZooKeeper().getSessionId();
            List<ConnectionState> seen = Collections.synchronizedList(new ArrayList<>());
            client.getConnectionStateListenable().addListener((framework, state) -> seen.add(state));
            expire(client);
            Checks.until("it is back", () -> seen.contains(ConnectionState.LOST) && seen.contains(ConnectionState.RECONNECTED));
            Checks.equal(null, client.checkExists().forPath(base + "/e"));
            Checks.that(client.getZookeeperClient().getZooKeeper().getSessionId() != session, "in the same session");
        });
    }

    private interface Section {
        void run() throws Exception;
    }

    private interface Guard {
        void around(Section section) throws Exception;
    }

    private interface Guards {
        Guard of(CuratorFramework client);
    }

    /** Runs a section from several clients and threads, and checks that no two are in it at once. */
    private void exclusive(String base, Guards guards) throws Exception {
        CuratorFramework plain = client();
        plain.create().forPath(base + "/counter", bytes("0"));
        AtomicInteger inside = new AtomicInteger();
        List<Future<?>> runs = new ArrayList<>();
        for (int index = 0; index < 4; index++) {
            CuratorFramework client = client();
            Guard guard = guards.of(client);
            for (int thread = 0; thread < 2; thread++) {
                runs.add(threads.submit(() -> {
                    for (int round = 0; round < 5; round++) {
                        guard.around(() -> {
                            Checks.equal(1, inside.incrementAndGet());
                            int value = Integer.parseInt(text(client.getData().forPath(base + "/counter")));
                            client.setData().forPath(base + "/counter", bytes("" + (value + 1)));
                            inside.decrementAndGet();
                        });
                    }
                    return null;
                }));
            }
        }
        for (Future<?> run : runs) {
            run.get(60, TimeUnit.SECONDS);
        }
        Checks.equal("40", text(plain.getData().forPath(base + "/counter")));
    }

    private static int leading(List<LeaderLatch> latches) {
        return (int) latches.stream().filter(LeaderLatch::hasLeadership).count();
    }

    /** One change to the tree below a znode: a create, a change of data, or a delete. */
    private static void change(CuratorFramework writer, String base, Random random) throws Exception {
        String path = base + "/n" + random.nextInt(8);
        if (random.nextBoolean()) {
            path += "/n" + random.nextInt(8);
        }
        try {
            switch (random.nextInt(3)) {
                case 0:
                    writer.create().forPath(path, bytes("" + random.nextInt()));
                    break;
                case 1:
                    writer.setData().forPath(path, bytes("" + random.nextInt()));
                    break;
                default:
                    writer.delete().forPath(path);
            }
        } catch (KeeperException.NodeExistsException | KeeperException.NoNodeException | KeeperException.NotEmptyException expected) {
            // A change that does not apply is none.
        }
    }

    /** The tree below a znode, read from the server. */
    private static Map<String, String> tree(CuratorFramework client, String path) throws Exception {
        Map<String, String> found = new TreeMap<>();
        found.put(path, text(client.getData().forPath(path)));
        for (String child : client.getChildren().forPath(path)) {
            found.putAll(tree(client, path + "/" + child));
        }
        return found;
    }

    private static void collect(TreeCache cache, String path, Map<String, String> found) {
        ChildData data = cache.getCurrentData(path);
        Map<String, ChildData> children = cache.getCurrentChildren(path);
        if (data != null) {
            found.put(path, text(data.getData()));
        }
        if (children != null) {
            children.keySet().forEach(child -> collect(cache, path + "/" + child, found));
        }
    }

    private static final QueueSerializer<String> STRINGS = new QueueSerializer<>() {
        @Override
        public byte[] serialize(String item) {
            return bytes(item);
        }

        @Override
        public String deserialize(byte[] data) {
            return text(data);
        }
    };

    private static QueueConsumer<String> consumer(List<String> taken) {
        return new QueueConsumer<>() {
            @Override
            public void consumeMessage(String item) {
                taken.add(item);
            }

            @Override
            public void stateChanged(CuratorFramework client, ConnectionState state) {
                // A queue reconnects by itself.
            }
        };
    }

    /** Ends a client's session on the server, as its expiry would, by closing it from another. */
    private void expire(CuratorFramework client) throws Exception {
        ZooKeeper own = client.getZookeeperClient().getZooKeeper();
        CountDownLatch connected = new CountDownLatch(1);
        ZooKeeper other = new ZooKeeper(address, SESSION_MS, event -> {
            if (event.getState() == KeeperState.SyncConnected) {
                connected.countDown();
            }
        }, own.getSessionId(), own.getSessionPasswd());
        Checks.that(connected.await(Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "no connection to " + address);
        other.close();
    }

    private static BlockingQueue<ConnectionState> states(CuratorFramework client) {
        BlockingQueue<ConnectionState> states = new LinkedBlockingQueue<>();
        client.getConnectionStateListenable().addListener((framework, state) -> states.add(state));
        return states;
    }

    private static long czxid(CuratorFramework client, String path) throws Exception {
        Stat stat = client.checkExists().forPath(path);
        return stat == null ? 0 : stat.getCzxid();
    }

    private CuratorFramework client() throws Exception {
        return client(address);
    }

    /** A connected client, closed at the end of the check. */
    private CuratorFramework client(String to) throws Exception {
        CuratorFramework client = CuratorFrameworkFactory.newClient(to, SESSION_MS, SESSION_MS, new RetryForever(50));
        client.start();
        Checks.that(client.blockUntilConnected((int) Checks.DEADLINE_MS, TimeUnit.MILLISECONDS), "no connection to " + to);
        clients.add(client);
        return client;
    }

    /** A fresh znode for one check. */
    private String base() throws Exception {
        return client().create().forPath("/curator-" + bases++, new byte[0]);
    }

    /** One check; its clients are closed at the end. */
    private void check(String name, Checks.Body body) {
        checks.check(name, body);
        clients.forEach(CuratorFramework::close);
        clients.clear();
    }

    private static byte[] bytes(String text) {
        return text.getBytes(UTF_8);
    }

    private static String text(byte[] data) {
        return data == null ? null : new String(data, UTF_8);
    }
}
