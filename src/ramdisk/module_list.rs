//! `modules.list`: the kernel modules of the initramfs, their load order, and the hardware that
//! they drive.
//!
//! The builder writes it, and [`super::modules`] reads it. It is one text file instead of depmod's
//! dozen: lines of modules with their dependencies in load order, then aliases (`pci:v00008086d*`)
//! as the drivers state them.

use std::collections::{BTreeMap, BTreeSet};

/// The content of `modules.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModuleList {
    /// Every module, with its direct and indirect dependencies in load order.
    pub(super) needs: BTreeMap<String, Vec<String>>,
    /// Modules that are always loaded.
    pub(super) always: Vec<String>,
    /// Alias patterns and their modules.
    pub(super) aliases: BTreeSet<(String, String)>,
}

impl ModuleList {
    /// Encodes the list: `module NAME NEED…`, `always NAME`, `alias NAME PATTERN`.
    pub(super) fn to_text(&self) -> String {
        let modules = self.needs.iter().map(|(name, needs)| {
            [&["module".to_owned(), name.clone()], needs.as_slice()].concat().join(" ")
        });
        let always = self.always.iter().map(|name| format!("always {name}"));
        let aliases = self.aliases.iter().map(|(pattern, name)| format!("alias {name} {pattern}"));
        let mut text = modules.chain(always).chain(aliases).collect::<Vec<_>>().join("\n");
        text.push('\n');
        text
    }

    /// Parses a list. Skips unknown lines.
    pub(super) fn parse(text: &str) -> Self {
        let mut list = Self::default();
        for line in text.lines() {
            match line.splitn(3, ' ').collect::<Vec<_>>().as_slice() {
                ["module", name] => {
                    list.needs.insert((*name).to_owned(), Vec::new());
                }
                ["module", name, needs] => {
                    let needs = needs.split(' ').map(ToOwned::to_owned).collect();
                    list.needs.insert((*name).to_owned(), needs);
                }
                ["always", name] => list.always.push((*name).to_owned()),
                ["alias", name, pattern] => {
                    list.aliases.insert(((*pattern).to_owned(), (*name).to_owned()));
                }
                _ => {}
            }
        }
        list
    }

    /// The modules for a device with this modalias.
    pub(super) fn wanted_by<'a>(&'a self, modalias: &'a str) -> impl Iterator<Item = &'a str> {
        self.aliases
            .iter()
            .filter(move |(pattern, _)| matches(pattern.as_bytes(), modalias.as_bytes()))
            .map(|(_, name)| name.as_str())
    }
}

/// Whether an alias pattern matches: `*`, `?` and `[…]` as in `fnmatch(3)`, as in the kernel's
/// `MODULE_DEVICE_TABLE`. Time is at most pattern × text: only the last `*` is retried.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (pattern, text);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match (p, t) {
            ([], []) => return true,
            ([b'*', rest @ ..], _) => {
                retry = Some((rest, t));
                Some((rest, t))
            }
            ([b'?', rest @ ..], [_, tail @ ..]) => Some((rest, tail)),
            ([b'[', class @ ..], [c, tail @ ..]) => match in_class(class, *c) {
                Some((true, rest)) => Some((rest, tail)),
                Some((false, _)) | None => None,
            },
            ([a, rest @ ..], [b, tail @ ..]) if a == b => Some((rest, tail)),
            _ => None,
        };
        (p, t) = match (step, retry) {
            (Some(next), _) => next,
            // The last `*` matches one byte more.
            (None, Some((after, [_, tail @ ..]))) => {
                retry = Some((after, tail));
                (after, tail)
            }
            (None, _) => return false,
        };
    }
}

/// Whether `c` is in the class after a `[`, and the pattern after its `]`.
fn in_class(class: &[u8], c: u8) -> Option<(bool, &[u8])> {
    let end = class.iter().position(|b| *b == b']')?;
    let (mut members, rest) = (class.get(..end)?, class.get(end + 1..)?);
    let mut found = false;
    loop {
        members = match members {
            [] => return Some((found, rest)),
            [low, b'-', high, tail @ ..] => {
                found |= (*low..=*high).contains(&c);
                tail
            }
            [one, tail @ ..] => {
                found |= *one == c;
                tail
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list() -> ModuleList {
        ModuleList {
            needs: BTreeMap::from([
                ("virtio".to_owned(), vec![]),
                ("virtio_net".to_owned(), vec!["failover".to_owned(), "virtio".to_owned()]),
            ]),
            always: vec!["virtio".to_owned()],
            aliases: BTreeSet::from([
                ("virtio:d00000001v*".to_owned(), "virtio_net".to_owned()),
                ("dmi*:svn Two Words:*".to_owned(), "virtio".to_owned()),
            ]),
        }
    }

    #[test]
    fn the_ramdisk_reads_what_the_builder_wrote() {
        assert_eq!(ModuleList::parse(&list().to_text()), list());
    }

    #[test]
    fn a_device_gets_the_driver_whose_alias_fits() {
        let wanted: Vec<String> =
            list().wanted_by("virtio:d00000001v00001AF4").map(ToOwned::to_owned).collect();
        assert_eq!(wanted, ["virtio_net"]);
        assert_eq!(list().wanted_by("virtio:d00000002v00001AF4").count(), 0);
    }

    #[test]
    fn patterns_match_as_fnmatch_does() {
        for (pattern, text, fits) in [
            (
                "pci:v00008086d000010D3sv*sd*bc*sc*i*",
                "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00",
                true,
            ),
            (
                "pci:v*d*sv*sd*bc01sc06i01*",
                "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01",
                true,
            ),
            (
                "pci:v*d*sv*sd*bc01sc06i01*",
                "pci:v00008086d00002922sv00001AF4sd00001100bc01sc01i80",
                false,
            ),
            ("scsi:t-0x00*", "scsi:t-0x00", true),
            (
                "cpu:type:x86,ven*fam*mod*:feature:*0080*",
                "cpu:type:x86,ven0fam6mod6:feature:,0000,0080,",
                true,
            ),
            ("usb:v1d[0-36-9]*", "usb:v1d7x", true),
            ("usb:v1d[0-36-9]*", "usb:v1d5x", false),
            ("a?c", "abc", true),
            ("a[", "a[", false),
            ("*a*b", "xxaxxab", true),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(
            pattern in proptest::collection::vec(any::<u8>(), 0..60),
            text in proptest::collection::vec(any::<u8>(), 0..60),
            file in ".{0,200}",
        ) {
            matches(&pattern, &text);
            ModuleList::parse(&file);
        }

        #[test]
        fn text_without_special_characters_matches_itself_and_with_a_star(
            text in "[a-z0-9:]{0,20}",
            more in "[a-z]{0,5}",
        ) {
            prop_assert!(matches(text.as_bytes(), text.as_bytes()));
            let (pattern, longer) = (format!("{text}*"), format!("{text}{more}"));
            prop_assert!(matches(pattern.as_bytes(), longer.as_bytes()));
        }
    }
}
