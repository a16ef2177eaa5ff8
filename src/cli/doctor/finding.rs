//! The findings of `hostler doctor`, and their output.

use std::io::Write;

use serde::Serialize;

use crate::{
    cli::{Failure, Format, print},
    model::fault::Fault,
};

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// It may be meant so, or could not be checked.
    Warning,
    /// Something will not work.
    Failure,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// The check's name, one word: `port`.
    pub(super) check: &'static str,
    /// The fact, and its place.
    pub(super) message: String,
    /// The administrator's next step; empty if nothing is wrong.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) hint: String,
}

impl Finding {
    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, message: message.into(), hint: String::new() }
    }

    pub(super) fn warning(
        check: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warning, check, message: message.into(), hint: hint.into() }
    }

    pub(super) fn failure(
        check: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { level: Level::Failure, check, message: message.into(), hint: hint.into() }
    }

    /// A node's fault, with the hint that its status would have.
    pub(super) fn of_fault(check: &'static str, of: impl std::fmt::Display, fault: Fault) -> Self {
        Self::failure(check, format!("{of}: {}", fault.message), fault.hint)
    }
}

/// Prints the findings, each with its hint, and their totals.
pub(super) fn print(
    findings: &[Finding],
    format: Format,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let [ok, warnings, failures] = [Level::Ok, Level::Warning, Level::Failure].map(count);
    if let Format::Json = format {
        let all = serde_json::json!({
            "findings": findings, "ok": ok, "warnings": warnings, "failures": failures,
        });
        writeln!(out, "{}", print::json(&all)?)?;
        return Ok(());
    }
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    for Finding { level, check, message, hint } in findings {
        let level = match level {
            Level::Ok => "ok  ",
            Level::Warning => "warn",
            Level::Failure => "FAIL",
        };
        writeln!(out, "{level}  {check:width$}  {message}")?;
        if !hint.is_empty() {
            writeln!(out, "{:1$}{hint}", "", "FAIL  ".len() + width + "  ".len())?;
        }
    }
    writeln!(out, "ok: {ok}, warnings: {warnings}, failures: {failures}")?;
    Ok(())
}
