//! The bodies of a ramdisk's calls, and what they do to a node that waits for them: calls with NULs between, each led by the first
//! letter of its name.
#![no_main]

use std::net::IpAddr;

use hostler::{
    lifecycle::{Action, Event, Node, Outcome},
    model::{
        callback::{Call, Reply},
        power::PowerState,
        secret::AttemptKey,
    },
};
use hostler_fuzz::{NOW, POLICY, SPEC, check_node, check_shown, step};
use libfuzzer_sys::fuzz_target;

const CALLS_MAX: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let key = AttemptKey::from_bytes(&[7; 32]);
    let mut node = waiting(&key);
    for call in bytes.split(|byte| *byte == 0).take(CALLS_MAX).filter_map(parse) {
        let peer = IpAddr::from([192, 0, 2, 101]);
        let event = Event::Callback { request: 1, peer, key: key.clone(), call: call.clone() };
        let actions = step(&mut node, *NOW, event);
        check_node(&node, *NOW);
        for action in actions {
            match action {
                Action::Reply { reply: Reply::Failed(why), .. } => check_shown(&why),
                Action::Reply { reply: Reply::Lookup(_), .. } => {
                    assert!(matches!(call, Call::Lookup(_)));
                }
                Action::Start { op, .. } => {
                    drop(step(
                        &mut node,
                        *NOW,
                        Event::Done { op, outcome: Ok(hostler_fuzz::imaged()) },
                    ));
                }
                _ => {}
            }
        }
    }
});

/// A node whose machine is on and boots the ramdisk.
fn waiting(key: &AttemptKey) -> Node {
    let mut node = Node::new(SPEC.name.clone(), POLICY, *NOW);
    let mut actions = step(&mut node, *NOW, Event::Spec(SPEC.clone()));
    let prepared = hostler_fuzz::prepared(key.clone());
    let off = Outcome::Power(PowerState::Off);
    for outcome in [off.clone(), prepared, off, Outcome::PoweredOn] {
        let Some(Action::Start { op, .. }) = actions.pop() else { unreachable!("{outcome:?}") };
        actions = step(&mut node, *NOW, Event::Done { op, outcome: Ok(outcome) });
    }
    assert!(node.record().state.attempt().is_some());
    node
}

fn parse(call: &[u8]) -> Option<Call> {
    let (name, body) = call.split_first()?;
    match name {
        b'l' => serde_json::from_slice(body).ok().map(Call::Lookup),
        b'p' => serde_json::from_slice(body).ok().map(Call::PassDeployInfo),
        b'd' => Some(Call::DeployState),
        b'c' => serde_json::from_slice(body).ok().map(Call::Completed),
        _ => None,
    }
}
