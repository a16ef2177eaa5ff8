//! Ramdisks' logs: those that hostler's ramdisk sends, and those of hostile machines, which are
//! many, large or full of control characters.

use hostler::model::{
    callback::{Call, RamdiskLog},
    secret::AttemptKey,
};

use super::site::Site;

/// Logs that a hostile ramdisk sends at once: more than an attempt may have.
const FLOOD: usize = 11;
/// Size of a hostile log: more than a log's file may have.
const HOSTILE_BYTES: usize = 200_000;

impl Site {
    /// Sends a ramdisk's log, or many of a hostile one.
    pub(crate) fn send_log(&mut self, id: usize) {
        let ramdisk = &self.ramdisks[id];
        if !self.plan.ramdisk_logs || ramdisk.is_ironics {
            return;
        }
        let key = ramdisk.key.clone();
        let is_hostile = self.dice.permille(60);
        let times = if is_hostile { 1 + self.dice.index(FLOOD) } else { 1 };
        for _ in 0..times {
            let log = if is_hostile { self.hostile_log(&key) } else { honest_log(&key) };
            self.send(id, Call::Log(log));
        }
    }

    pub(crate) fn hostile_log(&mut self, key: &AttemptKey) -> RamdiskLog {
        let key = key.expose();
        let (begin, end) = key.split_at(self.dice.index(key.len()));
        let line =
            format!("\x1b[2J\r\0{begin}\x1b[31m{end}\u{9b}31m\x07{begin}\0{end} \x7f{key}\n");
        let times = if self.dice.permille(30) { HOSTILE_BYTES / line.len() } else { 2 };
        RamdiskLog { kernel: line.repeat(times), ramdisk: format!("{key}{key}\n{line}") }
    }
}

/// The log of hostler's ramdisk: its kernel's command line has the attempt's key.
fn honest_log(key: &AttemptKey) -> RamdiskLog {
    let kernel = format!("[ 0.0] Kernel command line: hostler.key={} quiet\n", key.expose());
    RamdiskLog { kernel, ramdisk: "[ 0.1]  INFO hostler\n".to_owned() }
}
