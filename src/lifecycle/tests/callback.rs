//! What a deploy ramdisk may say, and when: by whatever it is called.

use crate::{
    lifecycle::{Event, Outcome, State},
    model::{
        callback::{Call, DeployInfo, Lookup, Reply},
        fault::RetryAdvice,
        status::Phase,
        system_guid::SystemGuid,
    },
};

use super::support::*;

#[test]
fn an_open_target_is_taken_if_the_spec_allows_it_and_no_name_or_secret_is_given_by_halves() {
    let Call::PassDeployInfo(good) = deploy_info("") else { unreachable!() };
    let open = DeployInfo { chap_username: String::new(), chap_password: None, ..good.clone() };
    let nameless = DeployInfo { chap_username: String::new(), ..good.clone() };
    let secretless = DeployInfo { chap_password: None, ..good.clone() };
    for (require_chap, taken, refused) in [
        (true, vec![&good], vec![&open, &nameless, &secretless]),
        (false, vec![&good, &open], vec![&nameless, &secretless]),
    ] {
        let mut bench = Bench::with_spec();
        bench.change(|spec| spec.boot.require_chap = require_chap);
        bench.go_to(Phase::WaitingRamdisk);
        bench.call(&key(1), lookup());
        for info in refused {
            assert_eq!(bench.call(&key(1), Call::PassDeployInfo(info.clone())), Reply::Refused);
        }
        for info in taken {
            let mut bench = Bench::with_spec();
            bench.change(|spec| spec.boot.require_chap = require_chap);
            bench.go_to(Phase::WaitingRamdisk);
            bench.call(&key(1), lookup());
            assert_eq!(bench.call(&key(1), Call::PassDeployInfo(info.clone())), Reply::Accepted);
            let State::Imaging { target, .. } = &bench.node.record().state else { panic!() };
            assert_eq!(target.chap_password, info.chap_password);
        }
    }
}

const GUID: [u8; 16] = [7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// A machine whose BMC reports [`GUID`] waits for its ramdisk.
fn matching() -> Bench {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Preparing);
    let Outcome::Prepared { image, key, stages, .. } = prepared(key(1)) else { unreachable!() };
    let system_guid = SystemGuid::new(GUID);
    bench.done(Ok(Outcome::Prepared { image, key, system_guid, stages }));
    bench.go_to(Phase::WaitingRamdisk);
    bench
}

fn lookup_of(uuid: Option<&str>) -> Call {
    let Call::Lookup(body) = lookup() else { unreachable!() };
    Call::Lookup(Lookup { system_uuid: uuid.map(str::to_owned), ..body })
}

#[test]
fn a_ramdisk_on_the_machine_that_the_bmc_belongs_to_is_believed() {
    for uuid in SystemGuid::new(GUID).unwrap().readings() {
        let mut bench = matching();
        bench.restart();
        bench.send(Event::Spec(spec().into()));
        let reply = bench.call(&key(1), lookup_of(Some(&uuid)));
        assert!(matches!(reply, Reply::Lookup(_)), "{uuid}: {reply:?}");
    }
}

#[test]
fn a_ramdisk_on_another_machine_than_the_bmc_belongs_to_ends_the_attempt_for_good() {
    let long = "\u{1b}".repeat(1 << 20);
    for uuid in [None, Some(""), Some("07010203-0405-0607-0809-0a0b0c0d0e10"), Some(&long)] {
        let mut bench = matching();
        let Reply::Failed(why) = bench.call(&key(1), lookup_of(uuid)) else { panic!("{uuid:?}") };
        assert!(why.contains("07010203-0405-0607-0809-0a0b0c0d0e0f"), "{why}");
        assert!(
            why.contains(uuid.map_or("not known", |uuid| &uuid[..uuid.len().min(36)]))
                || uuid == Some(&long)
        );
        assert!(why.len() < 400 && !why.contains('\u{1b}'), "{why}");
        let fault = bench.node.record().last_error.clone().unwrap().fault;
        assert_eq!((&*fault.code, fault.retry), ("WrongMachine", RetryAdvice::Never));
        bench.go_to(Phase::Failed);
    }
}
