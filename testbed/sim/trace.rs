//! The trace of a run, as `SIM_TRACE=1` prints it.

/// Whether all events are printed.
pub(crate) fn prints() -> bool {
    static PRINTS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *PRINTS.get_or_init(|| std::env::var_os("SIM_TRACE").is_some())
}

pub(crate) fn print(line: &str) {
    println!("{line}");
}
