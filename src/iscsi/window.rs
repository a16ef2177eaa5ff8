//! The numbers that keep initiator and target in step, RFC 7143 §4.2.2: `CmdSN`, `ExpCmdSN`,
//! `MaxCmdSN` and `StatSN`.
//!
//! The session uses it. All comparisons use serial arithmetic (RFC 1982), so that the numbers may
//! wrap.

/// Largest window of a target: serial comparison has no meaning beyond half the number space.
const WINDOW_MAX: u32 = 1 << 30;

/// The command and status counters of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    next_command: u32,
    last_command: u32,
    next_status: u32,
}

impl Window {
    /// The counters after the login.
    pub(super) fn new(next_command: u32, max_cmd_sn: u32, next_status: u32) -> Self {
        let mut window =
            Self { next_command, last_command: next_command.wrapping_sub(1), next_status };
        window.open_up_to(max_cmd_sn);
        window
    }

    /// The number for the next command.
    pub(super) fn next_cmd_sn(&self) -> u32 {
        self.next_command
    }

    /// The next expected status number.
    pub(super) fn exp_stat_sn(&self) -> u32 {
        self.next_status
    }

    /// Whether the target accepts another command now.
    pub(super) fn is_open(&self) -> bool {
        less_or_equal(self.next_command, self.last_command)
    }

    /// Uses up a command number.
    pub(super) fn command_sent(&mut self) {
        self.next_command = self.next_command.wrapping_add(1);
    }

    /// Records the numbers of a PDU; `false` if the target acknowledges commands that were never
    /// sent.
    pub(super) fn update(&mut self, exp_cmd_sn: u32, max_cmd_sn: u32) -> bool {
        if !less_or_equal(exp_cmd_sn, self.next_command) {
            return false;
        }
        // RFC 7143 §4.2.2.1: a contradictory pair is ignored.
        if less_or_equal(exp_cmd_sn.wrapping_sub(1), max_cmd_sn) {
            self.open_up_to(max_cmd_sn);
        }
        true
    }

    /// Records the number of a status; `false` if one was skipped or repeated, which recovery level
    /// 0 cannot repair.
    pub(super) fn status_received(&mut self, stat_sn: u32) -> bool {
        let expected = stat_sn == self.next_status;
        if expected {
            self.next_status = stat_sn.wrapping_add(1);
        }
        expected
    }

    /// Raises the window's end. A window never closes again: a smaller number belongs to an older
    /// PDU.
    fn open_up_to(&mut self, max_cmd_sn: u32) {
        let commands = max_cmd_sn.wrapping_add(1).wrapping_sub(self.next_command);
        if commands <= WINDOW_MAX && less_or_equal(self.last_command, max_cmd_sn) {
            self.last_command = max_cmd_sn;
        }
    }
}

fn less_or_equal(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_and_closes_across_the_wrap() {
        let mut window = Window::new(u32::MAX - 1, u32::MAX, 0);
        assert!(window.is_open());
        window.command_sent();
        window.command_sent();
        assert!(!window.is_open(), "two commands fit, {window:?}");
        assert!(window.update(0, 1));
        assert!(window.is_open());
        assert_eq!(window.next_cmd_sn(), 0);
    }

    #[test]
    fn stale_and_contradictory_windows_change_nothing() {
        let mut window = Window::new(10, 20, 0);
        let before = window;
        assert!(window.update(10, 15), "stale");
        assert!(window.update(10, 8), "MaxCmdSN < ExpCmdSN - 1");
        assert!(window.update(10, 10 + (1 << 31) + 5), "half the number space away");
        assert_eq!(window, before);
        assert!(!window.update(11, 30), "the target acknowledges a command that was not sent");
    }

    #[test]
    fn a_status_number_is_taken_once_and_in_order() {
        let mut window = Window::new(1, 1, u32::MAX);
        assert!(!window.status_received(0));
        assert!(window.status_received(u32::MAX));
        assert!(!window.status_received(u32::MAX));
        assert!(window.status_received(0));
    }
}
