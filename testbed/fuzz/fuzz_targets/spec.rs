//! A spec over its `_defaults.toml`: defaults, NUL, spec.
#![no_main]

use hostler::{
    model::spec::NodeSpec,
    spec_dir::{Defaults, parse},
};
use hostler_fuzz::{check_problems, halves};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (below, spec) = halves(bytes);
    let defaults = Defaults::new(below.map(|below| ("_defaults.toml", below)), None);
    let files = [("edge-07.toml", spec), ("_defaults.toml", below.unwrap_or_default())];
    let attachment =
        |path: &str| if path.len() < 8 { Ok(path.into()) } else { Err(path.to_owned()) };
    match parse("edge-07.toml", spec, &defaults, &attachment) {
        Ok(spec) => {
            assert!(defaults.problems().is_empty());
            let record = serde_json::to_vec(&spec).unwrap();
            assert_eq!(serde_json::from_slice::<NodeSpec>(&record).unwrap(), spec);
            spec.digest();
        }
        Err(problems) => check_problems(&problems, &files),
    }
});
