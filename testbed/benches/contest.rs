//! A contest: contenders do the same work in turn, and are measured from outside.

use std::{
    collections::BTreeMap,
    env, fs,
    process::{Command, Stdio},
    time::Instant,
};

/// A program that does the work.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// A shell's command line.
    pub(crate) command: String,
}

/// The cost of one run.
#[derive(Clone, Copy, Debug)]
struct Took {
    wall_s: f64,
    cpu_s: f64,
    /// The largest process's memory.
    rss_mib: f64,
}

/// Lets every contender write so many GiB, in turn, and prints the results. `before` prepares each
/// run; `after` checks each contender's first result. The first contender is hostler; others whose
/// names begin so are its variants, and no peers.
pub(crate) fn contest(
    case: &str,
    gib: f64,
    contenders: &[Contender],
    before: impl Fn(),
    after: impl Fn(&str),
) {
    compete(case, (gib, "s/GiB"), contenders, before, after);
}

/// Runs a contest of any work: its amount, and the unit of CPU time per unit of work.
pub(crate) fn compete(
    case: &str,
    (work, unit): (f64, &str),
    contenders: &[Contender],
    before: impl Fn(),
    after: impl Fn(&str),
) {
    let wanted = env::var("CASES").unwrap_or_default();
    if !wanted.is_empty() && !wanted.split(',').any(|start| case.starts_with(start)) {
        return;
    }
    let who = env::var("WHO").unwrap_or_default();
    let is_wanted =
        |one: &&Contender| who.is_empty() || who.split(',').any(|name| name == one.name);
    let contenders: Vec<&Contender> = contenders.iter().filter(is_wanted).collect();
    let rounds = env::var("RUNS").map_or(5, |runs| runs.parse().unwrap());
    let mut all: BTreeMap<&str, Vec<Took>> = BTreeMap::new();
    for round in 0..rounds {
        for contender in &contenders {
            before();
            let took = run(&contender.command);
            all.entry(contender.name).or_default().push(took);
            if round == 0 {
                after(contender.name);
            }
        }
    }
    let medians = |of: fn(&Took) -> f64| -> Vec<(&str, f64)> {
        contenders.iter().map(|one| (one.name, median(all[one.name].iter().map(of)))).collect()
    };
    let (walls, cpus) = (medians(|took| took.wall_s), medians(|took| took.cpu_s));
    let peers = walls.iter().filter(|(name, _)| !name.starts_with("hostler"));
    let fastest = peers.map(|(_, s)| *s).fold(f64::INFINITY, f64::min);
    let show = |values: &[(&str, f64)], scale: f64, unit: &str| -> String {
        let each = |(name, value): &(&str, f64)| format!(" {name}={:.3}{unit}", value / scale);
        values.iter().map(each).collect::<Vec<_>>().concat()
    };
    println!("bench {case}{} ratio={:.2}", show(&walls, 1.0, "s"), fastest / walls[0].1);
    println!("bench-cpu {case}{}", show(&cpus, work, unit));
    println!("bench-rss {case}{}", show(&medians(|took| took.rss_mib), 1.0, "MiB"));
}

fn run(command: &str) -> Took {
    let report = tempfile::NamedTempFile::new().unwrap();
    let started = Instant::now();
    let output = Command::new("/usr/bin/time")
        .args(["-o", report.path().to_str().unwrap(), "-f", "%U %S %M", "sh", "-ec", command])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let mut wall_s = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command}: {output:?}");
    let text = fs::read_to_string(report.path()).unwrap();
    let numbers: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [user_s, system_s, rss_kib] = numbers[..] else { panic!("{text}") };
    // A contender that first starts a machine reports the duration of the work itself.
    if let Some(took) = String::from_utf8_lossy(&output.stdout).trim().strip_prefix("took_s=") {
        wall_s = took.parse().unwrap();
    }
    Took { wall_s, cpu_s: user_s + system_s, rss_mib: rss_kib / 1024.0 }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
