//! Refusals, which must tell a caller nothing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hostler::{
    callback::CallbackLimits,
    model::callback::{Call, Reply},
};

use super::{Agent, DEPLOY_INFO, LOG, LOOKUP, judge, key, path};

/// Invariant (ramdisk): A key counts in one attempt, from one address, and all refusals look alike.
#[tokio::test]
async fn whatever_is_refused_looks_the_same() {
    let agent = Agent::judging(CallbackLimits::default()).await;
    let (good, wrong) = (key(), format!("Bearer {}", "00".repeat(32)));
    let lookup = path("edge-07", "lookup");
    let mut answers = Vec::new();
    for (method, path, key, body) in [
        ("POST", path("edge-08", "lookup"), Some(good.as_str()), LOOKUP),
        ("POST", lookup.clone(), Some(&wrong), LOOKUP),
        ("POST", lookup.clone(), Some("Bearer abc"), LOOKUP),
        ("POST", lookup.clone(), Some("Basic eHg6eHg="), LOOKUP),
        ("POST", lookup.clone(), None, LOOKUP),
        ("POST", lookup.clone(), None, "{not json"),
        ("POST", path("EDGE_07", "lookup"), Some(&good), LOOKUP),
        ("POST", path("edge-07", "nothing"), Some(&good), LOOKUP),
        ("POST", "/".to_owned(), None, ""),
        ("POST", path("%ff", "lookup"), Some(&good), LOOKUP),
        ("POST", path("edge-07", "%ff"), Some(&good), LOOKUP),
        ("GET", path("%ff%00", "deploy_state"), None, ""),
        ("GET", lookup.clone(), Some(&good), ""),
        ("DELETE", lookup.clone(), Some(&good), LOOKUP),
        ("OPTIONS", lookup, Some(&good), LOOKUP),
        ("POST", path("edge-07", "deploy_state"), Some(&good), ""),
        ("GET", path("edge-08", "deploy_state"), Some(&good), ""),
    ] {
        let got = agent.curl(method, &path, key, body).await;
        assert_eq!(got.status, 404, "{method} {path}");
        answers.push(got.all_but_the_date);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:#?}");
}

#[tokio::test]
async fn a_bad_body_tells_nothing_about_node_and_key() {
    let agent = Agent::judging(CallbackLimits::default()).await;
    let wrong = format!("Bearer {}", "00".repeat(32));
    let mut answers = Vec::new();
    for (node, key) in [("edge-07", key()), ("edge-07", wrong.clone()), ("edge-08", wrong)] {
        for body in ["", "{", "[]", r#"{"macs":"hunter2"}"#, "\u{0}"] {
            let got = agent.curl("POST", &path(node, "lookup"), Some(&key), body).await;
            assert_eq!(got.status, 400, "{body}");
            answers.push(got.all_but_the_date);
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:#?}");
}

#[tokio::test]
async fn a_target_at_port_0_is_a_bad_body() {
    let agent = Agent::judging(CallbackLimits::default()).await;
    let call = path("edge-07", "pass_deploy_info");
    let wrong = format!("Bearer {}", "00".repeat(32));
    for (port, status) in [("0", 400), ("\"3260\"", 400), ("3260", 404)] {
        let body = format!(r#"{{"address":"192.0.2.9","iqn":"iqn.x","port":{port}}}"#);
        let got = agent.curl("POST", &call, Some(&wrong), &body).await;
        assert_eq!(got.status, status, "{port}");
    }
}

#[tokio::test]
async fn an_unknown_node_a_wrong_key_and_a_wrong_phase_are_told_the_same_in_every_call() {
    // The driver expects a lookup of only one node.
    let agent = Agent::start(CallbackLimits::default(), |request| {
        Some(match (&request.call, judge(request)) {
            (Call::Lookup(_), reply) => reply,
            _ => Reply::Refused,
        })
    })
    .await;
    let (good, wrong) = (key(), format!("Bearer {}", "00".repeat(32)));
    assert_eq!(
        agent.curl("POST", &path("edge-07", "lookup"), Some(&good), LOOKUP).await.status,
        200
    );
    let mut answers = Vec::new();
    for (method, call, body) in [
        ("POST", "pass_deploy_info", DEPLOY_INFO),
        ("GET", "deploy_state", ""),
        ("POST", "completed", r#"{"error":"no disk"}"#),
        ("POST", "log", LOG),
    ] {
        for (node, key) in [("edge-08", &good), ("edge-07", &wrong), ("edge-07", &good)] {
            let got = agent.curl(method, &path(node, call), Some(key), body).await;
            assert_eq!(got.status, 404, "{node} {call}");
            answers.push(got.all_but_the_date);
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:#?}");
}

/// The time of a comparison must not depend on the correct part of a secret: `Secret` compares in
/// constant time, so that no code may compare an exposed one.
#[test]
fn secrets_are_compared_in_constant_time_and_nowhere_else() {
    let model = fs::read_to_string(source("model/secret.rs")).unwrap();
    assert!(model.contains("self.0.as_bytes().ct_eq(other.0.as_bytes()).into()"));
    let mut compared = Vec::new();
    let mut dirs = vec![source("")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let is_test = entry.file_stem().is_some_and(|stem| stem == "tests")
                || entry.components().any(|part| part.as_os_str() == "tests");
            if entry.is_dir() {
                dirs.push(entry);
            } else if !is_test {
                let text = fs::read_to_string(&entry).unwrap_or_default();
                let product = text.split("#[cfg(test)]").next().unwrap_or_default();
                let lines = product.lines().filter(|line| line.contains("expose()"));
                let compares = |line: &&str| {
                    ["==", "!=", "eq(", "cmp(", "starts_with", "ends_with", "matches!"]
                        .iter()
                        .any(|how| line.contains(how))
                };
                compared.extend(lines.filter(compares).map(str::to_owned));
            }
        }
    }
    assert_eq!(compared, [""; 0]);
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)
}
