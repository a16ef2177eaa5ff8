//! What a deploy ramdisk may say, and when: by whatever it is called.

use crate::{
    lifecycle::State,
    model::{
        callback::{Call, DeployInfo, Reply},
        status::Phase,
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
