//! The zookeeper-client crate against a running server: `rust-client ADDRESS VERSION`.
//!
//! Prints `ok NAME` or `FAIL NAME` with the reason for each check, and `done COUNT` at the end.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;
use zookeeper_client as zk;

/// How long anything that ought to happen may take.
const DEADLINE: Duration = Duration::from_secs(20);

const OPEN: zk::CreateOptions<'static> =
    zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all());
const EPHEMERAL: zk::CreateOptions<'static> =
    zk::CreateMode::Ephemeral.with_acls(zk::Acls::anyone_all());
const SEQUENTIAL: zk::CreateOptions<'static> =
    zk::CreateMode::PersistentSequential.with_acls(zk::Acls::anyone_all());
const CONTAINER: zk::CreateOptions<'static> =
    zk::CreateMode::Container.with_acls(zk::Acls::anyone_all());

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Fails the check it stands in unless both sides are equal.
macro_rules! equal {
    ($expected:expr, $found:expr) => {{
        let (expected, found) = (&$expected, &$found);
        if expected != found {
            return Err(format!("line {}: expected {expected:?}, found {found:?}", line!()).into());
        }
    }};
}

/// The server under test, and the checks made of it.
struct Checks {
    address: String,
    version: (u32, u32, u32),
    made: usize,
    failed: usize,
}

impl Checks {
    /// Makes one check, on a client and a znode of its own.
    async fn check<F: Future<Output = Outcome>>(
        &mut self,
        name: &str,
        body: impl FnOnce(Server, zk::Client, String) -> F,
    ) {
        self.made += 1;
        let server = Server { address: self.address.clone(), version: self.version };
        let base = format!("/rust-{}", self.made);
        let checked = async {
            let client = server.connect().await?;
            client.create(&base, b"", &OPEN).await?;
            body(server, client, base).await
        };
        let outcome = match timeout(3 * DEADLINE, checked).await {
            Ok(outcome) => outcome,
            Err(_) => Err("it takes too long".into()),
        };
        match outcome {
            Ok(()) => println!("ok {name}"),
            Err(reason) => {
                self.failed += 1;
                println!("FAIL {name}\n  {reason}");
            }
        }
    }
}

/// Where to connect to.
struct Server {
    address: String,
    version: (u32, u32, u32),
}

impl Server {
    async fn connect(&self) -> Result<zk::Client, zk::Error> {
        self.connector().connect(&self.address).await
    }

    fn connector(&self) -> zk::Connector {
        let (major, minor, patch) = self.version;
        let mut connector = zk::Client::connector();
        connector.server_version(major, minor, patch).session_timeout(Duration::from_secs(10));
        connector
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().expect("the server's address");
    let version = arguments.next().expect("the server's version");
    let mut numbers = version.split('.').map(|number| number.parse().expect("a number"));
    let mut number = || numbers.next().expect("three numbers");
    let version = (number(), number(), number());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut checks = Checks { address, version, made: 0, failed: 0 };
    runtime.block_on(run(&mut checks));
    println!("done {}", checks.made);
    std::process::exit(if checks.failed == 0 { 0 } else { 1 });
}

async fn run(checks: &mut Checks) {
    checks
        .check("create, get, set and delete, with their stats", async |_, client, base| {
            let path = format!("{base}/a");
            let (created, _) = client.create(&path, b"one", &OPEN).await?;
            equal!((b"one".to_vec(), created), client.get_data(&path).await?);
            let set = client.set_data(&path, b"two!", Some(0)).await?;
            equal!((1, 4, created.czxid), (set.version, set.data_length, set.czxid));
            equal!(Err(zk::Error::BadVersion), client.set_data(&path, b"", Some(0)).await);
            equal!(Err(zk::Error::NotEmpty), client.delete(&base, None).await);
            client.delete(&path, Some(1)).await?;
            equal!(None, client.check_stat(&path).await?);
            equal!(Err(zk::Error::NoNode), client.get_data(&path).await);
            equal!(Some(zk::Error::NodeExists), client.create(&base, b"", &OPEN).await.err());
            Ok(())
        })
        .await;
    checks
        .check("every mode of create", async |_, client, base| {
            let (_, first) = client.create(&format!("{base}/s-"), b"", &SEQUENTIAL).await?;
            let (_, second) = client.create(&format!("{base}/s-"), b"", &SEQUENTIAL).await?;
            equal!((0, 1), (first.into_i64(), second.into_i64()));
            let (stat, _) = client.create(&format!("{base}/e"), b"", &EPHEMERAL).await?;
            equal!(client.session_id().0, stat.ephemeral_owner);
            client.create(&format!("{base}/c"), b"", &CONTAINER).await?;
            let lasting = OPEN.clone().with_ttl(Duration::from_secs(3600));
            client.create(&format!("{base}/t"), b"", &lasting).await?;
            let children: BTreeSet<_> = client.list_children(&base).await?.into_iter().collect();
            let expected = ["c", "e", "s-0000000000", "s-0000000001", "t"].map(String::from);
            equal!(BTreeSet::from(expected), children);
            equal!(vec![format!("{base}/e")], client.list_ephemerals(&base).await?);
            equal!(5, client.count_descendants_number(&base).await?);
            Ok(())
        })
        .await;
    checks
        .check("watches that fire once", async |server, client, base| {
            let other = server.connect().await?;
            let path = format!("{base}/a");
            let (_, born) = client.check_and_watch_stat(&path).await?;
            let (_, _, children) = client.get_and_watch_children(&base).await?;
            other.create(&path, b"", &OPEN).await?;
            equal!(zk::EventType::NodeCreated, timeout(DEADLINE, born.changed()).await?.event_type);
            equal!(
                zk::EventType::NodeChildrenChanged,
                timeout(DEADLINE, children.changed()).await?.event_type
            );
            let (_, _, data) = client.get_and_watch_data(&path).await?;
            other.set_data(&path, b"new", None).await?;
            equal!(
                zk::EventType::NodeDataChanged,
                timeout(DEADLINE, data.changed()).await?.event_type
            );
            let (_, gone) = client.check_and_watch_stat(&path).await?;
            other.delete(&path, None).await?;
            equal!(zk::EventType::NodeDeleted, timeout(DEADLINE, gone.changed()).await?.event_type);
            Ok(())
        })
        .await;
    checks
        .check("watches that last", async |server, client, base| {
            let other = server.connect().await?;
            let path = format!("{base}/a");
            let mut below = client.watch(&base, zk::AddWatchMode::PersistentRecursive).await?;
            // From another session: before 3.9 a connection has one mode per path.
            let mut here = other.watch(&base, zk::AddWatchMode::Persistent).await?;
            other.create(&path, b"", &OPEN).await?;
            other.set_data(&path, b"1", None).await?;
            other.delete(&path, None).await?;
            for (kind, place) in [
                (zk::EventType::NodeCreated, &path),
                (zk::EventType::NodeDataChanged, &path),
                (zk::EventType::NodeDeleted, &path),
            ] {
                let event = timeout(DEADLINE, below.changed()).await?;
                equal!((kind, place), (event.event_type, &event.path));
            }
            for _ in 0..2 {
                let event = timeout(DEADLINE, here.changed()).await?;
                equal!(
                    (zk::EventType::NodeChildrenChanged, &base),
                    (event.event_type, &event.path)
                );
            }
            // Dropped, they are removed from the server.
            drop(here);
            drop(below);
            other.create(&path, b"", &OPEN).await?;
            client.sync(&base).await?;
            Ok(())
        })
        .await;
    checks
        .check("several writes as one, and several reads", async |_, client, base| {
            let path = format!("{base}/a");
            let mut writer = client.new_multi_writer();
            writer.add_create(&path, b"1", &OPEN)?;
            writer.add_set_data(&path, b"2", Some(0))?;
            writer.add_check_version(&path, 1)?;
            writer.add_create(&format!("{base}/b"), b"", &OPEN)?;
            writer.add_delete(&format!("{base}/b"), None)?;
            equal!(5, writer.commit().await?.len());
            let mut writer = client.new_multi_writer();
            writer.add_create(&format!("{base}/c"), b"", &OPEN)?;
            writer.add_check_version(&path, 7)?;
            equal!(
                Some(zk::MultiWriteError::OperationFailed {
                    index: 1,
                    source: zk::Error::BadVersion
                }),
                writer.commit().await.err()
            );
            equal!(vec!["a".to_string()], client.list_children(&base).await?);
            let mut reader = client.new_multi_reader();
            reader.add_get_data(&path)?;
            reader.add_get_children(&base)?;
            reader.add_get_data(&format!("{base}/no"))?;
            let read = reader.commit().await?;
            match &read[..] {
                [
                    zk::MultiReadResult::Data { data, .. },
                    zk::MultiReadResult::Children { children },
                    zk::MultiReadResult::Error { err: zk::Error::NoNode },
                ] => {
                    equal!(b"2".to_vec(), *data);
                    equal!(vec!["a".to_string()], *children);
                }
                other => return Err(format!("unexpected: {other:?}").into()),
            }
            Ok(())
        })
        .await;
    checks
        .check("identities and ACLs", async |server, client, base| {
            let path = format!("{base}/own");
            let user = server.connect().await?;
            user.auth("digest".to_string(), b"user:secret".to_vec()).await?;
            let own = zk::CreateMode::Persistent.with_acls(zk::Acls::creator_all());
            user.create(&path, b"x", &own).await?;
            equal!(Err(zk::Error::NoAuth), client.get_data(&path).await);
            equal!(b"x".to_vec(), user.get_data(&path).await?.0);
            let users = user.list_auth_users().await?;
            let users: BTreeSet<_> =
                users.iter().map(|user| (user.scheme(), user.user())).collect();
            equal!(BTreeSet::from([("digest", "user"), ("ip", "127.0.0.1")]), users);
            user.set_acl(&path, &[zk::Acl::new(zk::Permission::ALL, zk::AuthId::anyone())], None)
                .await?;
            client.get_data(&path).await?;
            Ok(())
        })
        .await;
    checks
        .check(
            "locks hold each other off, and a session's end lets go",
            async |server, client, base| {
                let directory = format!("{base}/locks");
                let options = zk::LockOptions::new(zk::Acls::anyone_all());
                let options = options.with_ancestor_options(CONTAINER.clone())?;
                let counter = format!("{base}/counter");
                client.create(&counter, b"0", &OPEN).await?;
                let mut tasks = Vec::new();
                for _ in 0..4 {
                    let own = server.connect().await?;
                    let (directory, counter) = (directory.clone(), counter.clone());
                    let options = options.clone();
                    tasks.push(tokio::spawn(async move {
                        for _ in 0..10 {
                            let prefix = zk::LockPrefix::new_curator(&directory, "lock-")?;
                            let lock = own.lock(prefix, b"", options.clone()).await?;
                            // Read, then write without a version: a step is lost unless the lock holds.
                            let (data, _) = own.get_data(&counter).await?;
                            let value: u32 = String::from_utf8_lossy(&data).parse().unwrap_or(0);
                            lock.set_data(&counter, (value + 1).to_string().as_bytes(), None)
                                .await?;
                        }
                        // The client is dropped while it holds a lock: its session ends.
                        let prefix = zk::LockPrefix::new_curator(&directory, "lock-")?;
                        let lock = own.lock(prefix, b"", options.clone()).await?;
                        std::mem::forget(lock);
                        Ok::<_, zk::Error>(())
                    }));
                }
                for task in tasks {
                    timeout(2 * DEADLINE, task).await???;
                }
                equal!(b"40".to_vec(), client.get_data(&counter).await?.0);
                Ok(())
            },
        )
        .await;
    checks
        .check("a thousand requests in flight are answered in order", async |_, client, base| {
            let writes: Vec<_> = (0..1000)
                .map(|number: i32| client.set_data(&base, &number.to_be_bytes(), Some(number)))
                .collect();
            let last = client.get_data(&base);
            for (number, write) in writes.into_iter().enumerate() {
                equal!(number as i32 + 1, write.await?.version);
            }
            equal!(999_i32.to_be_bytes().to_vec(), last.await?.0);
            client.sync(&base).await?;
            Ok(())
        })
        .await;
    checks
        .check("a session lives on in another client", async |server, client, base| {
            let path = format!("{base}/e");
            let owner = server.connector().detached().connect(&server.address).await?;
            owner.create(&path, b"", &EPHEMERAL).await?;
            let session = owner.into_session();
            let id = session.id();
            let heir = server.connector().session(session).connect(&server.address).await?;
            equal!(id, heir.session_id());
            equal!(vec![path.clone()], heir.list_ephemerals("/").await?);
            let (_, gone) = client.check_and_watch_stat(&path).await?;
            drop(heir);
            equal!(zk::EventType::NodeDeleted, timeout(DEADLINE, gone.changed()).await?.event_type);
            Ok(())
        })
        .await;
    checks
        .check("a client in a chroot", async |_, client, base| {
            let inside = client.clone().chroot(&base).map_err(|_| "no chroot")?;
            inside.create("/a", b"x", &OPEN).await?;
            equal!(b"x".to_vec(), client.get_data(&format!("{base}/a")).await?.0);
            inside.mkdir("/deep/er/and/deeper", &OPEN).await?;
            equal!(true, client.check_stat(&format!("{base}/deep/er/and/deeper")).await?.is_some());
            Ok(())
        })
        .await;
}
