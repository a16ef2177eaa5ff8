//! The agent's configuration, and its `[defaults]` under a spec.
#![no_main]

use hostler::{config, spec_dir::Defaults};
use hostler_fuzz::check_problems;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let files = [("hostler.toml", bytes)];
    match config::parse("hostler.toml", bytes) {
        Ok(config) => {
            let shown = config.to_toml();
            assert_eq!(config::parse("shown.toml", shown.as_bytes()).unwrap(), config, "{shown}");
            let defaults = Defaults::new(None, config.defaults.as_ref());
            if !defaults.problems().is_empty() {
                check_problems(defaults.problems(), &files);
            }
        }
        Err(problems) => check_problems(&problems, &files),
    }
});
