//! Generates `docs/contributing/state-machine.md` from the transitions and from the table of phases
//! and events, and checks it. `UPDATE_EXPECT=1` writes it.

use std::{cell::RefCell, collections::BTreeSet, fmt::Write as _, sync::Arc};

use expect_test::expect_file;

use crate::{
    lifecycle::{
        Attempt, Event, FirstBoot, Hold, Outcome, Purpose, Record, State, Target,
        transitions::{Cause, Effect, next},
    },
    model::{
        boot::{BootStage, Fetch},
        callback::Call,
        fault::{Fault, Step},
        power::PowerState,
        secret::Secret,
        spec::{BootCheck, DeployRamdisk, Goal, WantedPower},
        status::Phase,
    },
};

use super::{support::*, table};

thread_local! {
    /// The transitions so far: state and cause.
    static TAKEN: RefCell<BTreeSet<(String, &'static str)>> =
        const { RefCell::new(BTreeSet::new()) };
}

/// Notes a transition of a node.
pub(in crate::lifecycle) fn note(from: &State, cause: &Cause) {
    TAKEN.with_borrow_mut(|taken| taken.insert((state_name(from), cause_name(cause))));
}

fn attempt(has_bmc: bool) -> Attempt {
    let Outcome::Prepared { image, key, .. } = prepared(key(1)) else { unreachable!() };
    Attempt::new(key, image, None, spec().bmc.filter(|_| has_bmc))
}

fn target() -> Target {
    Target {
        address: RAMDISK,
        port: 3260,
        lun: 0,
        iqn: "iqn.2026-11.hostler:edge-07".into(),
        chap_username: "user".into(),
        chap_password: Some(Secret::new("chap-secret".into())),
        knows_salt: true,
    }
}

fn states(has_bmc: bool) -> Vec<State> {
    let (attempt, disk, target) =
        (Box::new(attempt(has_bmc)), Box::new(disk()), Box::new(target()));
    let held = |reason| State::Held { redeploy: None, reason };
    vec![
        State::Idle,
        held(Hold::PoweredOn),
        held(Hold::RecordLost),
        State::Failed,
        State::SettingPower { wanted: PowerState::On },
        State::Preparing { ready: None },
        State::Preparing { ready: Some(attempt.clone()) },
        State::PoweringOn { attempt: attempt.clone() },
        State::WaitingRamdisk { attempt: attempt.clone() },
        State::Imaging {
            attempt: attempt.clone(),
            disk: disk.clone(),
            target: target.clone(),
            granted: false,
        },
        State::Imaging { attempt: attempt.clone(), disk: disk.clone(), target, granted: true },
        State::Switching { attempt: attempt.clone(), disk: disk.clone() },
        State::WaitingCompleted { attempt: attempt.clone(), disk: disk.clone() },
        State::Restarting { attempt: attempt.clone(), disk },
        State::Booting { boot: FirstBoot::Waiting },
        State::Booting { boot: FirstBoot::Overdue },
        State::Booting { boot: FirstBoot::Restarting },
        State::CleaningUp { attempt: Some(attempt), purpose: Purpose::Retry },
    ]
}

fn causes(has_bmc: bool) -> Vec<Cause> {
    vec![
        Cause::AttemptGranted,
        Cause::ConsentMissing { redeploy: None, reason: Hold::PoweredOn },
        Cause::ConsentMissing { redeploy: None, reason: Hold::RecordLost },
        Cause::NotSeenOn,
        Cause::DiskKnown,
        Cause::PowerWanted(PowerState::On),
        Cause::PowerReached,
        Cause::PowerMissed,
        Cause::ImageVerified(Box::new(attempt(has_bmc))),
        Cause::PowerConfirmed,
        Cause::PoweredOn,
        Cause::SeenBooting,
        Cause::CutOff,
        Cause::TargetOffered { disk: Box::new(disk()), target: Box::new(target()) },
        Cause::ImagingGranted,
        Cause::Written { verify: Vec::new(), disk_bytes: 1, root_partuuid: None },
        Cause::Released,
        Cause::LetGo,
        Cause::Restarted,
        Cause::NotRestarted,
        Cause::BootAwaited(FirstBoot::Waiting),
        Cause::BootAwaited(FirstBoot::Restarting),
        Cause::BootRepeated,
        Cause::BootJudged,
        Cause::FileMissing,
        Cause::StartedAfresh,
        Cause::Abandoned(Purpose::Retry),
        Cause::NeverBegun(Purpose::Retry),
        Cause::Ended(Purpose::Retry),
        Cause::Ended(Purpose::GiveUp),
        Cause::Ended(Purpose::StartOver),
    ]
}

/// A state, with the parts that decide about its transitions.
fn state_name(state: &State) -> String {
    let (name, part) = match state {
        State::Idle => ("idle", None),
        State::Held { reason: Hold::RecordLost, .. } => ("held", Some("record lost")),
        State::Held { .. } => ("held", Some("powered on")),
        State::Failed => ("failed", None),
        State::SettingPower { .. } => ("setting-power", None),
        State::Preparing { ready: None } => ("preparing", Some("image")),
        State::Preparing { ready: Some(_) } => ("preparing", Some("power")),
        State::PoweringOn { .. } => ("powering-on", None),
        State::WaitingRamdisk { .. } => ("waiting-ramdisk", None),
        State::Imaging { granted: false, .. } => ("imaging", Some("waiting")),
        State::Imaging { granted: true, .. } => ("imaging", Some("writing")),
        State::Switching { .. } => ("switching", None),
        State::WaitingCompleted { .. } => ("waiting-completed", None),
        State::Restarting { .. } => ("restarting", None),
        State::Booting { boot: FirstBoot::Waiting } => ("booting", Some("waiting")),
        State::Booting { boot: FirstBoot::Overdue } => ("booting", Some("overdue")),
        State::Booting { boot: FirstBoot::Restarting } => ("booting", Some("restarting")),
        State::CleaningUp { .. } => ("cleaning-up", None),
    };
    part.map_or_else(|| name.to_owned(), |part| format!("{name} ({part})"))
}

const fn cause_name(cause: &Cause) -> &'static str {
    match cause {
        Cause::AttemptGranted => "AttemptGranted",
        Cause::ConsentMissing { .. } => "ConsentMissing",
        Cause::NotSeenOn => "NotSeenOn",
        Cause::DiskKnown => "DiskKnown",
        Cause::PowerWanted(_) => "PowerWanted",
        Cause::PowerReached => "PowerReached",
        Cause::PowerMissed => "PowerMissed",
        Cause::ImageVerified(_) => "ImageVerified",
        Cause::PowerConfirmed => "PowerConfirmed",
        Cause::PoweredOn => "PoweredOn",
        Cause::SeenBooting => "SeenBooting",
        Cause::CutOff => "CutOff",
        Cause::TargetOffered { .. } => "TargetOffered",
        Cause::ImagingGranted => "ImagingGranted",
        Cause::Written { .. } => "Written",
        Cause::Released => "Released",
        Cause::LetGo => "LetGo",
        Cause::Restarted => "Restarted",
        Cause::NotRestarted => "NotRestarted",
        Cause::BootAwaited(FirstBoot::Restarting) => "BootAwaited(Restarting)",
        Cause::BootAwaited(_) => "BootAwaited(Waiting)",
        Cause::BootRepeated => "BootRepeated",
        Cause::BootJudged => "BootJudged",
        Cause::FileMissing => "FileMissing",
        Cause::StartedAfresh => "StartedAfresh",
        Cause::Abandoned(_) => "Abandoned",
        Cause::NeverBegun(_) => "NeverBegun",
        Cause::Ended(Purpose::Retry) => "Ended(Retry)",
        Cause::Ended(Purpose::GiveUp) => "Ended(GiveUp)",
        Cause::Ended(Purpose::StartOver) => "Ended(StartOver)",
    }
}

const fn effect_words(effect: Effect) -> &'static str {
    match effect {
        Effect::ConsentGiven => "consent counts for the whole series of attempts",
        Effect::ConsentEnds => "consent ends",
        Effect::AttemptCounts => "the attempt counts",
        Effect::AttemptUncounted => "the attempt does not count",
        Effect::AttemptsForgotten => "attempts are counted anew",
        Effect::WaitGoesOn => "the deadline stays",
    }
}

/// One transition: state, cause, next state and effects.
type Arrow = (String, &'static str, String, &'static [Effect]);

fn arrows(has_bmc: bool) -> Vec<Arrow> {
    let mut arrows = Vec::new();
    for from in states(has_bmc) {
        for cause in causes(has_bmc) {
            let name = cause_name(&cause);
            if let Ok((to, effects)) = next(from.clone(), cause) {
                arrows.push((state_name(&from), name, state_name(&to), effects));
            }
        }
    }
    arrows
}

/// The comments above the variants of an enum, each with the variant's name.
fn comments(source: &str, of: &str) -> Vec<(String, String)> {
    let body = source.split_once(&format!("enum {of} {{\n")).unwrap().1;
    let body = body.split_once("\n}\n").unwrap().0;
    let (mut comments, mut comment) = (Vec::new(), String::new());
    for line in body.lines() {
        if let Some(text) = line.strip_prefix("    /// ") {
            write!(comment, "{text} ").unwrap();
        } else if line.starts_with("    ") && !comment.is_empty() {
            let name: String = line.trim().chars().take_while(|c| c.is_alphanumeric()).collect();
            comments.push((name, std::mem::take(&mut comment).trim().to_owned()));
        }
    }
    comments
}

/// A paragraph in lines of at most 100 columns, the first after `lead`.
fn paragraph(page: &mut String, lead: &str, text: &str) {
    let mut line = lead.to_owned();
    let indent = " ".repeat(if lead.starts_with("- ") { 2 } else { 0 });
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > 100 {
            writeln!(page, "{line}").unwrap();
            line.clone_from(&indent);
        }
        if !line.is_empty() && !line.ends_with(' ') {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(page, "{line}").unwrap();
}

fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.extend(c.to_lowercase());
    }
    kebab
}

fn write_states(page: &mut String) {
    let (with_bmc, manual) = (arrows(true), arrows(false));
    for (name, text) in comments(include_str!("../state.rs"), "State") {
        let name = kebab(&name);
        write!(page, "\n### {name}\n\n").unwrap();
        paragraph(page, "", &text);
        page.push('\n');
        let leads_from = |from: &str| from == name || from.starts_with(&format!("{name} ("));
        let with = with_bmc
            .iter()
            .map(|arrow| (arrow, if manual.contains(arrow) { "" } else { ", with a BMC" }));
        let without = manual.iter().filter(|arrow| !with_bmc.contains(arrow));
        let arrows = with.chain(without.map(|arrow| (arrow, ", without a BMC")));
        for ((from, cause, to, effects), who) in arrows.filter(|(arrow, _)| leads_from(&arrow.0)) {
            let part = from.strip_prefix(&name).unwrap().trim();
            let part = if part.is_empty() { String::new() } else { format!("{part} ") };
            let effects: Vec<&str> = effects.iter().map(|effect| effect_words(*effect)).collect();
            let effects = if effects.is_empty() {
                String::new()
            } else {
                format!("; {}", effects.join("; "))
            };
            paragraph(page, "- ", &format!("{part}`{cause}`{who} → **{to}**{effects}"));
        }
    }
}

fn write_causes(page: &mut String) {
    for (name, text) in comments(include_str!("../transitions.rs"), "Cause") {
        paragraph(page, "- ", &format!("`{name}`: {text}"));
    }
}

fn write_phases(page: &mut String) {
    for (name, what, _) in table::EVENTS {
        paragraph(page, "- ", &format!("`{name}`: {what}"));
    }
    page.push_str("\n| Phase | Event | Next phase |\n|---|---|---|\n");
    let mut before = "";
    let table = table::every_phase_against_every_event();
    let groups = table.chunk_by(|one, other| (one.0, one.2) == (other.0, other.2));
    for group in groups.flat_map(|group| group.chunks(4)) {
        let (from, _, to) = group[0];
        let shown = if from == before { "" } else { from };
        before = from;
        let events: Vec<String> = group.iter().map(|(_, event, _)| format!("`{event}`")).collect();
        writeln!(page, "| {shown} | {} | {to} |", events.join(", ")).unwrap();
    }
}

#[test]
fn the_published_state_machine_is_the_one_that_runs() {
    let mut page = String::from(include_str!("state-machine.head.md"));
    write_states(&mut page);
    page.push_str("\n## Causes\n\nIn brackets: the file in `src/lifecycle` that finds it.\n\n");
    write_causes(&mut page);
    page.push_str(
        "\n## Phases and events\n\n\
         The phase that the status file shows, and the next one after each event. Several phases \
         are one\n\
         state: `pending`, `deployed`, `paused` and others are `idle`. An event that is not listed \
         for a\nphase leaves it as it is. The events:\n\n",
    );
    write_phases(&mut page);
    expect_file!["../../../docs/contributing/state-machine.md"].assert_eq(&page);
}

/// Plays an installation without a BMC, by this ramdisk.
fn install_manually(ramdisk: DeployRamdisk) {
    let mut bench = Bench::with_spec();
    bench.change(|spec| {
        (spec.bmc, spec.boot.ramdisk) = (None, ramdisk);
        spec.boot.require_chap = ramdisk == DeployRamdisk::Hostler;
    });
    bench.pass(1);
    for _ in 0..20 {
        if let Some((_, operation)) = bench.running.clone() {
            bench.done(Ok(good_outcome(&operation)));
        } else if bench.phase() == Phase::PoweringOn {
            let fetch = Fetch { stage: BootStage::Menu, ..ramdisk_fetched_by(RAMDISK) };
            bench.send(Event::Fetched(fetch));
        } else if bench.phase() == Phase::WaitingRamdisk && ramdisk == DeployRamdisk::Ironic {
            bench.call(&key(1), ironic_target());
        } else {
            for call in [lookup(), deploy_info(""), Call::DeployState, completed("")] {
                bench.call(&key(1), call);
            }
        }
        if bench.phase() == Phase::Deployed {
            return;
        }
    }
    panic!("stuck in {:?}", bench.node.record().state);
}

/// Plays a change of the spec's power.
fn switch_power(end: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::with_spec();
    bench.go_to(Phase::Deployed);
    bench.change(|spec| spec.power = WantedPower::Off);
    bench.poll(PowerState::On);
    assert!(matches!(bench.node.record().state, State::SettingPower { .. }));
    end(&mut bench);
}

/// A node with a damaged record.
fn hold_lost_record(end: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::new();
    bench.resume(&Record::distrusted(bench.now));
    bench.send(Event::Spec(Arc::new(spec())));
    assert_eq!(bench.node.held_for(), Some(Hold::RecordLost));
    end(&mut bench);
}

/// Plays an attempt up to this phase.
fn attempt_in(phase: Phase, end: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::with_spec();
    bench.go_to(phase);
    end(&mut bench);
}

/// Plays a first boot up to `place`, and then `end`.
fn boot_to(place: FirstBoot, end: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::with_spec();
    bench.change(check_port);
    bench.go_to(Phase::Booting);
    let spec = Arc::clone(bench.node.spec().unwrap());
    match place {
        FirstBoot::Waiting => {}
        FirstBoot::Overdue => {
            bench.restart();
            bench.now = bench.now.checked_add(jiff::SignedDuration::from_hours(1)).unwrap();
            bench.send(Event::Spec(spec));
        }
        FirstBoot::Restarting => {
            bench.pass(86_400);
            bench.done(Err(passing()));
        }
    }
    assert_eq!(bench.node.record().state, State::Booting { boot: place });
    end(&mut bench);
}

/// Plays every end of a first boot.
fn take_first_boots() {
    for place in [FirstBoot::Waiting, FirstBoot::Overdue, FirstBoot::Restarting] {
        boot_to(place, |bench| bench.change(|spec| spec.boot_check = BootCheck::None));
        boot_to(place, |bench| bench.pass(86_400));
    }
    boot_to(FirstBoot::Overdue, |bench| {
        bench.poll(PowerState::On);
        let good = good_outcome(&bench.running.clone().unwrap().1);
        bench.done(Ok(good));
    });
    boot_to(FirstBoot::Restarting, |bench| bench.done(Ok(Outcome::Restarted(PowerState::On))));
    // Paused, and switched off meanwhile.
    boot_to(FirstBoot::Waiting, |bench| {
        bench.change(|spec| spec.paused = true);
        bench.done(Err(passing()));
        bench.poll(PowerState::Off);
        bench.change(|spec| spec.paused = false);
    });
}

/// Plays the transitions that the table does not reach.
fn take_rare_transitions() {
    let missing = || Fault::missing(Step::Image, "Test", "no such file", "put it there");
    let read_spec = |bench: &mut Bench| drop(bench.send(Event::Spec(Arc::new(spec()))));
    install_manually(DeployRamdisk::Hostler);
    install_manually(DeployRamdisk::Ironic);
    // A held machine that is off later.
    let mut bench = Bench::with_spec();
    bench.poll(PowerState::On);
    bench.poll(PowerState::Off);
    hold_lost_record(|bench| bench.change(|spec| spec.goal = Goal::Unmanaged));
    hold_lost_record(|bench| drop(bench.send(Event::Approve)));
    switch_power(|bench| bench.done(Ok(Outcome::PowerSet(PowerState::Off))));
    switch_power(|bench| bench.done(Err(lasting())));
    switch_power(|bench| drop(bench.send(Event::SpecClash(Vec::new()))));
    attempt_in(Phase::Preparing, |bench| bench.done(Err(missing())));
    for end in [Ok(Outcome::Power(PowerState::On)), Err(missing()), Err(lasting())] {
        attempt_in(Phase::Preparing, |bench| {
            bench.done(Ok(prepared(key(1))));
            bench.done(end);
        });
    }
    // Its record cannot be written.
    attempt_in(Phase::PoweringOn, |bench| {
        bench.node.on_record = Some(Box::new(State::Idle));
        bench.change(|spec| spec.paused = true);
    });
    // A ramdisk that calls before the BMC reports the machine on.
    attempt_in(Phase::PoweringOn, |bench| {
        bench.call(&key(1), lookup());
        bench.call(&key(1), deploy_info(""));
    });
    attempt_in(Phase::WaitingRamdisk, |bench| {
        let fetch = Fetch { stage: BootStage::Menu, ..ramdisk_fetched_by(RAMDISK) };
        bench.send(Event::Fetched(fetch));
        bench.restart();
        read_spec(bench);
    });
    attempt_in(Phase::WaitingRamdisk, |bench| {
        bench.crowded = true;
        bench.call(&key(1), lookup());
        bench.call(&key(1), deploy_info(""));
        bench.call(&key(1), deploy_info("no disk any more"));
    });
    attempt_in(Phase::Imaging, |bench| {
        bench.change(|spec| spec.redeploy = Some("another".into()));
        bench.done(Err(passing()));
        bench.done(Ok(Outcome::CleanedUp));
    });
}

#[test]
fn every_transition_is_taken() {
    TAKEN.with_borrow_mut(BTreeSet::clear);
    drop(table::every_phase_against_every_event());
    take_rare_transitions();
    take_first_boots();
    let arrows = [arrows(true), arrows(false)].concat();
    let all = arrows.into_iter().map(|(from, cause, ..)| (from, cause));
    let missing: Vec<_> =
        TAKEN.with_borrow(|taken| all.filter(|arrow| !taken.contains(arrow)).collect());
    assert_eq!(missing, Vec::new(), "never taken");
}
