//! In which order servers start, and who leads.

use crate::PATIENCE;
use crate::ensemble::{Ensemble, Plan};
use crate::load::check_equal;
use crate::server::until;

/// As tutorials tell it.
#[test]
fn of_five_that_start_one_after_the_other_the_third_leads() {
    let mut ensemble = Ensemble::new("five", &Plan::of(5));
    for id in 1..=5 {
        ensemble.start(id);
        // Each is up before the next is started.
        until(PATIENCE, || format!("server {id}: {}", ensemble.tell()), || ensemble.answers(id));
        if id == 3 {
            assert_eq!(ensemble.wait_leader(), 3);
            ensemble.wait_serving(&[1, 2, 3]);
        }
    }
    ensemble.wait_all();
    for id in [1, 2, 4, 5] {
        assert_eq!(ensemble.state(id), Some("FOLLOWING"), "server {id}");
    }
    let mut client = ensemble.client(1);
    client.create("/first", b"1");
    client.answer();

    // Servers 4 and 5 miss something; then the newest zxid wins, with the highest id of those.
    for id in [4, 5] {
        ensemble.kill(id);
    }
    client.create("/second", b"2");
    client.answer();
    let mut second = ensemble.client(2);
    second.sync("/");
    second.answer();
    drop((client, second));
    for id in [1, 2, 3] {
        // All three have all: their zxids are the same.
        until(
            PATIENCE,
            || ensemble.tell(),
            || ensemble.zxid(id) == ensemble.zxid(1) && ensemble.zxid(1) == ensemble.zxid(3),
        );
    }
    for id in [1, 2, 3] {
        ensemble.kill(id);
    }
    for id in [1, 4, 5, 2] {
        ensemble.start(id);
    }
    let leader = ensemble.wait_leader();
    assert!([1, 2].contains(&leader), "server {leader} leads, and it does not know all");
    ensemble.start(3);
    ensemble.wait_all();
    let tree = check_equal(&ensemble, &ensemble.ids());
    assert!(tree.contains_key("/first") && tree.contains_key("/second"));

    // All have all: of those that are there first, the highest id leads, and others follow it.
    for id in ensemble.ids() {
        ensemble.kill(id);
    }
    for id in [1, 2, 4] {
        ensemble.start(id);
        until(PATIENCE, || ensemble.tell(), || ensemble.answers(id));
    }
    assert_eq!(ensemble.wait_leader(), 4);
    ensemble.wait_serving(&[1, 2, 4]);
    ensemble.start(3);
    ensemble.start(5);
    ensemble.wait_all();
    for id in [1, 2, 3, 5] {
        assert_eq!(ensemble.state(id), Some("FOLLOWING"), "server {id}");
    }
    check_equal(&ensemble, &ensemble.ids());
}
