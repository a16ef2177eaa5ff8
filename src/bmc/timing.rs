//! The waits of every BMC driver.

use std::time::Duration;

/// The waits of a BMC driver. The defaults are right for BMCs; tests on loopback are in more of a
/// hurry.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Before a datagram is sent again, or a program run again, for the first time.
    pub resend_first: Duration,
    /// The longest of those waits.
    pub resend_max: Duration,
    /// Between two polls of the power state while it is to change, if the spacing is not longer.
    pub poll: Duration,
    /// Before a power command whose effect does not show is given again.
    pub reissue: Duration,
    /// How long a BMC may refuse what it accepted before until that is final.
    pub doubt: Duration,
    /// How long a BMC may show the boot device that was set before.
    pub flags_settle: Duration,
    /// Between two signs of life while a console is listened to. A BMC closes a session in which
    /// nothing was said for 60 s, give or take 3 (IPMI 2.0 §6.12.15).
    pub console_alive: Duration,
    /// Before a console that somebody else has is asked for again, and the longest pause before one
    /// that was lost is.
    pub console_retry: Duration,
    /// The longest run of a program that speaks for a BMC.
    pub program_run: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            resend_first: Duration::from_secs(1),
            resend_max: Duration::from_secs(4),
            poll: Duration::from_secs(1),
            reissue: Duration::from_secs(15),
            doubt: Duration::from_secs(60),
            flags_settle: Duration::from_secs(20),
            console_alive: Duration::from_secs(20),
            console_retry: Duration::from_secs(30),
            program_run: Duration::from_secs(60),
        }
    }
}
