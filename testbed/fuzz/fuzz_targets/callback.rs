//! The bodies of a ramdisk's calls, and their effect on a node that waits for them. The calls are
//! separated by NULs; each begins with the first letter of its name, and a capital letter means a
//! call with another key or from another address, which must have no effect. Also the agent's
//! answers, as the ramdisk reads them.
#![no_main]

use std::net::IpAddr;

use hostler::{
    lifecycle::{Action, Event, Node, Outcome},
    model::{
        callback::{Call, DeployStateReply, LookupReply, Reply},
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
    for (number, line) in bytes.split(|byte| *byte == 0).take(CALLS_MAX).enumerate() {
        read_answer(line);
        let Some(call) = parse(line) else { continue };
        let peer = IpAddr::from([192, 0, 2, 101]);
        if line.first().is_some_and(u8::is_ascii_uppercase) {
            strange(&mut node, &key, peer, call, number % 2 == 0);
            continue;
        }
        let event = Event::Callback { request: 1, peer, key: key.clone(), call: call.clone() };
        let actions = step(&mut node, *NOW, event);
        check_node(&node, *NOW);
        for action in actions {
            match action {
                Action::Reply { reply: Reply::Failed(why), .. } => check_shown(&why),
                Action::Reply { reply: Reply::LookupAgain(answer), .. } => {
                    check_shown(&answer.error)
                }
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

/// Makes a call with another key or, once the ramdisk's address is known, from another address.
fn strange(node: &mut Node, key: &AttemptKey, peer: IpAddr, call: Call, other_key: bool) {
    let before = node.record().clone();
    let bound = before.state.attempt().and_then(|attempt| attempt.peer).is_some();
    let event = if other_key || !bound {
        Event::Callback { request: 1, peer, key: AttemptKey::from_bytes(&[8; 32]), call }
    } else {
        let peer = IpAddr::from([192, 0, 2, 66]);
        Event::Callback { request: 1, peer, key: key.clone(), call }
    };
    let actions = step(node, *NOW, event);
    assert!(matches!(&actions[..], [Action::Reply { reply: Reply::Refused, .. }]));
    assert!(node.record().state == before.state);
}

/// Reads an arbitrary answer of the agent, whose identity is proven, but not its sense.
fn read_answer(body: &[u8]) {
    if let Ok(reply) = serde_json::from_slice::<LookupReply>(body) {
        assert!(
            serde_json::from_value(serde_json::json!(reply))
                .is_ok_and(|again: LookupReply| again == reply)
        );
    }
    if let Ok(reply) = serde_json::from_slice::<DeployStateReply>(body) {
        assert!(
            serde_json::from_value(serde_json::json!(reply))
                .is_ok_and(|again: DeployStateReply| again == reply)
        );
    }
}

fn parse(call: &[u8]) -> Option<Call> {
    let (name, body) = call.split_first()?;
    match name.to_ascii_lowercase() {
        b'l' => serde_json::from_slice(body).ok().map(Call::Lookup),
        b'p' => serde_json::from_slice(body).ok().map(Call::PassDeployInfo),
        b'd' => Some(Call::DeployState),
        b'c' => serde_json::from_slice(body).ok().map(Call::Completed),
        b'f' => serde_json::from_slice(body).ok().map(Call::Flushed),
        b'v' => serde_json::from_slice(body).ok().map(Call::Verifying),
        b'g' => serde_json::from_slice(body).ok().map(Call::Log),
        _ => None,
    }
}
