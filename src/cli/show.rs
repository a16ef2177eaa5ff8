//! `hostler show`: a node's effective spec, each value with its origin.

use std::{io::Write, process::ExitCode};

use crate::{model::toml_reader::Setting, spec_dir};

use super::{Failure, NodeArgs, Problems, print};

pub(super) fn show(place: &NodeArgs, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let (file, defaults) = place.spec()?;
    let settings = spec_dir::read_file_settings(&file, defaults.as_ref()).map_err(Problems)?;
    write!(out, "{}", print::toml(&spec_text(&settings)))?;
    Ok(ExitCode::SUCCESS)
}

/// Formats the settings by table, with their origins in one column.
fn spec_text(settings: &[Setting]) -> String {
    let tables: Vec<String> = settings
        .chunk_by(|one, next| split(&one.key).0 == split(&next.key).0)
        .map(|settings| {
            let header = settings.first().map(|first| split(&first.key).0).unwrap_or_default();
            let header = if header.is_empty() { String::new() } else { format!("[{header}]\n") };
            header + &lines(settings)
        })
        .collect();
    tables.join("\n")
}

fn lines(settings: &[Setting]) -> String {
    let line = |setting: &Setting| format!("{} = {}", split(&setting.key).1, setting.value);
    let width = settings.iter().map(|setting| line(setting).chars().count()).max().unwrap_or(0);
    let lines = settings.iter().map(|one| format!("{:width$}  # {}\n", line(one), one.origin));
    lines.collect()
}

/// Splits a dotted key into its table and its last part.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::model::toml_reader::Origin;

    #[test]
    fn each_table_has_its_origins_in_one_column() {
        let file = |line| Origin::File { file: "nodes/a.toml".into(), line, table: String::new() };
        let agent =
            Origin::File { file: "/etc/hostler.toml".into(), line: 30, table: "defaults".into() };
        let setting = |key: &str, value: &str, origin| Setting {
            key: key.into(),
            value: value.into(),
            origin,
        };
        let settings = [
            setting("state", "\"deployed\"", Origin::Default),
            setting("paused", "true", file(1)),
            setting("boot.mac", "\"52:54:00:00:00:01\"", file(12)),
            setting("boot.arch", "\"é\"", agent),
        ];
        expect![[r#"
            state = "deployed"  # default
            paused = true       # a.toml:1

            [boot]
            mac = "52:54:00:00:00:01"  # a.toml:12
            arch = "é"                 # hostler.toml:30 [defaults]
        "#]]
        .assert_eq(&spec_text(&settings));
    }
}
