//! Texts that are one value: the ramdisk's kernel command line, names, addresses, digests, keys,
//! sizes, hints, durations.
#![no_main]

use std::{fmt::Display, str::FromStr};

use hostler::model::{
    boot::RamdiskArgs,
    disk::SizeHint,
    ids::{Digest, MacAddr, NodeName},
    secret::AttemptKey,
    size::{parse_bytes, show_bytes},
    toml_reader::duration,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    reads_back::<NodeName>(text);
    reads_back::<MacAddr>(text);
    reads_back::<Digest>(text);
    if let Ok(key) = text.parse::<AttemptKey>() {
        assert_eq!(key.expose(), text);
    }
    if let Ok(args) = RamdiskArgs::from_command_line(text) {
        let line = args.to_command_line();
        assert_eq!(RamdiskArgs::from_command_line(line.expose()), Ok(args));
    }
    if let Ok(bytes) = parse_bytes(text) {
        assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
        show_bytes(bytes);
    }
    if let Ok(hint) = SizeHint::parse(text) {
        assert_eq!(SizeHint::parse(hint.to_string().trim_end_matches("ytes")), Ok(hint));
    }
    if let Ok(wait) = duration(text) {
        assert!((1..=7 * 24 * 3600).contains(&wait.as_secs()));
    }
});

fn reads_back<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(value.to_string().parse().is_ok_and(|again: T| again == value));
    }
}
