//! The identity of an installation, as every version of hostler must compute it.

use std::collections::BTreeSet;

use expect_test::expect;

use crate::model::{
    disk::SizeHint,
    spec::{NodeSpec, WantedPower},
};

use super::support::*;

#[test]
fn the_identity_of_an_installation_is_its_image_root_device_and_redeploy_for_all_versions_of_hostler()
 {
    type Change = fn(&mut NodeSpec);
    let digest = |change: Change| {
        let mut spec = spec();
        change(&mut spec);
        spec.digest().to_string()
    };
    let effects: [Change; 6] = [
        |spec| spec.name = "other".parse().unwrap(),
        |spec| spec.power = WantedPower::Ignore,
        |spec| spec.paused = true,
        |spec| spec.bmc.as_mut().unwrap().move_to("192.0.2.24"),
        |spec| spec.image.source = "elsewhere.raw".into(),
        |spec| spec.timeouts.power *= 2,
    ];
    let inside: [Change; 6] = [
        |spec| spec.image.checksum = format!("sha256:{}", "1".repeat(64)).parse().unwrap(),
        |spec| spec.redeploy = Some("a".into()),
        |spec| spec.root_device.name = Some("a".into()),
        |spec| spec.root_device.serial = Some("a".into()),
        |spec| spec.root_device.size = Some(SizeHint::parse(">= 8GiB").unwrap()),
        |spec| spec.root_device.rotational = Some(false),
    ];
    let unchanged = digest(|_| {});
    assert!(effects.into_iter().all(|change| digest(change) == unchanged));
    let different: BTreeSet<String> = inside.into_iter().map(digest).collect();
    assert_eq!((different.len(), different.contains(&unchanged)), (inside.len(), false));
    // Should this change, every machine out there looks out of date after the upgrade.
    expect!["sha256:bb5036728bba426d36dc07d798234823d3030bebda24081ebb4ca5d671490365"].assert_eq(
        &digest(|spec| {
            spec.root_device.serial = Some("root-1".into());
            spec.root_device.size = Some(SizeHint::parse("s>= 100GiB").unwrap());
            spec.root_device.rotational = Some(true);
        }),
    );
}
