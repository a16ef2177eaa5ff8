//! Tests of requests and their bodies.

use proptest::prelude::*;

use super::*;
use crate::model::{
    callback::{DeployInfo, Lookup},
    disk::Disk,
    secret::Secret,
};

const KEY: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";

fn headers(values: &[&str]) -> HeaderMap {
    values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
}

#[test]
fn a_key_is_taken_from_one_well_formed_bearer_header_only() {
    let good = format!("Bearer {KEY}");
    assert_eq!(bearer(&headers(&[&good])).unwrap().expose(), KEY);
    let upper = good.to_uppercase();
    for bad in [&[][..], &[KEY], &["Basic eHg6eHg="], &[&good, &good], &["Bearer "], &[&upper]] {
        assert!(bearer(&headers(bad)).is_none(), "{bad:?}");
    }
}

#[test]
fn only_these_calls_exist_and_only_with_their_method() {
    let is_call =
        |method: &Method, node: &str, name: &str| parse(method, node, name, b"{}").is_some();
    for name in
        ["lookup", "pass_deploy_info", "completed", "flushed", "verifying", "log", "deploy_state"]
    {
        let (right, wrong) = match name {
            "deploy_state" => (Method::GET, Method::POST),
            _ => (Method::POST, Method::GET),
        };
        assert!(is_call(&right, "edge-07", name) && !is_call(&wrong, "edge-07", name), "{name}");
    }
    for (node, name) in
        [("", "lookup"), ("..", "lookup"), ("EDGE", "lookup"), ("a/b", "lookup"), ("edge-07", "")]
    {
        assert!(!is_call(&Method::POST, node, name), "{node} {name}");
    }
}

/// Parses a body of this call.
fn read_body(name: &str, body: &str) -> Result<Call, serde_json::Error> {
    parse(&Method::POST, "edge-07", name, body.as_bytes()).unwrap().1
}

#[test]
fn bodies_that_are_no_json_or_no_such_call_are_refused_however_they_are_made() {
    let deep = |open: &str, close: &str| {
        let nested = open.repeat(BODY_BYTES_MAX / 16) + &close.repeat(BODY_BYTES_MAX / 16);
        format!(r#"{{"macs":[],"disks":[],"x":{nested}}}"#)
    };
    for body in [
        deep("[", ""),
        deep(r#"{"x":"#, ""),
        r#"{"macs":[],"macs":[],"disks":[]}"#.to_owned(),
        r#"{"macs":[],"disks":[{"name":"a","size":1,"size":2}]}"#.to_owned(),
        r#"{"macs":[],"disks":[{"name":"a","size":NaN}]}"#.to_owned(),
        r#"{"macs":[],"disks":[{"name":"a","size":-1}]}"#.to_owned(),
        r#"{"macs":[],"disks":[{"name":"a","size":1e30}]}"#.to_owned(),
        r#"{"macs":[],"disks":[{"name":"a","size":18446744073709551616}]}"#.to_owned(),
        r#"{"macs":[],"disks":[{"name":"\ud800","size":1}]}"#.to_owned(),
        r#"{"macs":[],"disks":[{"name":"a"}]}"#.to_owned(),
        r#"{"macs":null,"disks":[]}"#.to_owned(),
        r#"{"macs":[],"disks":[]} {}"#.to_owned(),
        "\u{feff}{\"macs\":[],\"disks\":[]}".to_owned(),
        "null".to_owned(),
        "NaN".to_owned(),
    ] {
        assert!(read_body("lookup", &body).is_err(), "{body:.80}");
    }
    for body in [r#"{"port":65536}"#, r#"{"lun":-1}"#, r#"{"address":"127.1"}"#, r#"{"port":"1"}"#]
    {
        assert!(read_body("pass_deploy_info", body).is_err(), "{body}");
    }
    for body in [r#"{"verified":1}"#, r#"{"error":null}"#, r#"{"verify_ms":1.5}"#] {
        assert!(read_body("completed", body).is_err(), "{body}");
    }
}

#[test]
fn as_many_disks_and_nics_as_a_body_holds_are_read_whole() {
    let disks = vec![r#"{"name":"","size":1}"#; 12_000].join(",");
    let Ok(Call::Lookup(lookup)) =
        read_body("lookup", &format!(r#"{{"macs":[],"disks":[{disks}]}}"#))
    else {
        panic!("not read")
    };
    assert_eq!(lookup.disks.len(), 12_000);
}

proptest! {
    #[test]
    fn never_panics_on_any_bytes(
        node in ".{0,20}",
        name in "lookup|pass_deploy_info|completed|flushed|log|.{0,9}",
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        parse(&Method::POST, &node, &name, &body);
    }

    #[test]
    fn never_panics_on_any_json(json in r#"[\[\]{}":,a-z0-9\\-]{0,80}"#) {
        for name in ["lookup", "pass_deploy_info", "completed", "flushed", "log"] {
            prop_assert!(parse(&Method::POST, "a", name, json.as_bytes()).is_some());
        }
    }

    #[test]
    fn what_a_ramdisk_writes_is_read_as_it_was_meant(
        uuid in proptest::option::of(".{0,40}"),
        names in proptest::collection::vec(".{0,20}", 0..20),
        size: u64,
        port in 1..=u16::MAX,
        lun: u8,
        text in ".{0,200}",
    ) {
        let disk = |name| Disk { name, size, serial: Some(text.clone()), ..Disk::default() };
        let lookup = Lookup {
            macs: vec!["52:54:00:00:00:01".parse().unwrap()],
            disks_same_for_ms: None,
            system_uuid: uuid,
            system_serial: None,
            disks: names.into_iter().map(disk).collect(),
            memory: size,
            cpus: 1,
        };
        let read = read_body("lookup", &serde_json::to_string(&lookup).unwrap());
        prop_assert_eq!(read.unwrap(), Call::Lookup(lookup));
        let info = DeployInfo {
            address: Some([192, 0, 2, 1].into()),
            port,
            lun,
            iqn: text.clone(),
            chap_username: text.clone(),
            chap_password: Some(Secret::new(text.clone())),
            knows_salt: true,
            error: text,
        };
        let read = read_body("pass_deploy_info", &serde_json::to_string(&info).unwrap());
        prop_assert_eq!(read.unwrap(), Call::PassDeployInfo(info));
    }
}

#[test]
fn all_machines_that_are_installed_at_once_have_room_for_their_connections() {
    for machines in [1, 54, 100, 1000] {
        let limits = CallbackLimits::for_machines(machines);
        assert!(limits.connections_max >= (3 * machines).max(256), "{limits:?}");
    }
}
