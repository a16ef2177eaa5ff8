//! Far more specs at once than a site has.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use super::{NO_RESCAN, in_force, observed, shell, status_elsewhere, told};
use crate::agent::site::{Site, wait_at_most};

const CROWD: u16 = 2000;
/// For all of them to have a status, on a machine that runs many tests at once.
const CROWD_LIMIT: Duration = Duration::from_secs(60);
/// How long a caller may have to wait meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Specs of so many observed nodes in a directory of their own.
fn gather(site: &Site, label: &str) {
    fs::create_dir(site.path("crowd")).unwrap();
    for number in 0..CROWD {
        let spec = observed(number, label).to_toml();
        fs::write(site.path(&format!("crowd/n{number}.toml")), spec).unwrap();
    }
}

/// Waits until all have a status: how long that took, and how long the slowest callback meanwhile.
fn arrive(site: &Site) -> (Duration, Duration) {
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    // From another address each time: one alone may not ask so often.
    let mut callers = (1..=254).flat_map(|a| (1..=254).map(move |b| format!("127.2.{a}.{b}")));
    let arrived = wait_at_most(CROWD_LIMIT, || {
        slowest = slowest.max(call(site, &callers.next().unwrap()));
        (told(site).len() > usize::from(CROWD)).then_some(())
    });
    assert!(arrived.is_some(), "{} of them:\n{}", told(site).len(), site.log());
    (began.elapsed(), slowest)
}

/// How long a callback takes that only the driver can refuse.
fn call(site: &Site, from: &str) -> Duration {
    let asked = Instant::now();
    let answer = Command::new("curl")
        .args(["--silent", "--insecure", "--max-time", "30", "--noproxy", "*", "--interface", from])
        .args(["--header", &format!("Authorization: Bearer {}", "5a".repeat(32))])
        .args(["--output", "/dev/null", "--write-out", "%{http_code}"])
        .arg(format!("https://{}/v1/nodes/first/vendor_passthru/deploy_state", site.callback))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "404");
    asked.elapsed()
}

#[test]
#[expect(clippy::print_stdout, reason = "a measurement for people")]
fn two_thousand_specs_at_once_all_get_their_status_and_nobody_is_kept_waiting() {
    let site = Site::new();
    site.configure(&(status_elsewhere(&site) + NO_RESCAN));
    fs::write(site.path("secrets/nobody.bmc"), "x").unwrap();
    let _agent = site.start();
    site.write("first", &observed(CROWD, ""));
    in_force(&site, "first", &observed(CROWD, ""));
    gather(&site, "");
    shell(&site, "cp nodes/first.toml crowd; mv nodes old; mv crowd nodes");
    let (all, slowest) = arrive(&site);
    println!("{CROWD} statuses in {all:?}; the slowest callback took {slowest:?}");
    assert!(slowest < ANSWER_LIMIT, "{slowest:?}");
}
