//! The reason why a value is refused.

use crate::model::problem::ProblemKind;

/// The reason why a value is refused, with the right one if there is only one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The kind of problem; `None`: that of the key.
    pub(super) kind: Option<ProblemKind>,
    /// The problem, and after a semicolon the advice.
    pub(super) message: String,
    /// The right value, as TOML.
    pub(super) fix: Option<String>,
}

impl Refused {
    /// Refuses a value with a kind of its own.
    pub fn new(kind: ProblemKind, message: &str) -> Self {
        Self { kind: Some(kind), message: message.to_owned(), fix: None }
    }

    /// Sets the right value, as TOML.
    #[must_use]
    pub fn fixed_by(mut self, toml: String) -> Self {
        self.fix = Some(toml);
        self
    }
}

/// Refuses a value with the kind of its key.
impl From<String> for Refused {
    fn from(message: String) -> Self {
        Self { kind: None, message, fix: None }
    }
}
