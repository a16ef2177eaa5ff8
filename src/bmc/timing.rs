//! The waits of every BMC driver.

use std::time::Duration;

/// The waits of a BMC driver. The defaults suit BMCs; tests on loopback use shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first wait before a datagram is repeated, or a program run again.
    pub resend_first: Duration,
    /// The longest wait before a repetition.
    pub resend_max: Duration,
    /// The pause between two polls of a changing power state, unless the spacing is longer.
    pub poll: Duration,
    /// The wait before a power command without effect is repeated.
    pub reissue: Duration,
    /// How long a BMC may refuse a command that it accepted before, until the refusal is final.
    pub doubt: Duration,
    /// How long a BMC may show the previous boot device.
    pub flags_settle: Duration,
    /// The pause between two signs of life while a console is open. A BMC closes a session after 60
    /// s, give or take 3, without a message (IPMI 2.0 §6.12.15).
    pub console_alive: Duration,
    /// The wait before the next try for a console that another session owns, and the longest pause
    /// before a lost console is opened again.
    pub console_retry: Duration,
    /// The longest run of a BMC program.
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
