//! The error of a BMC call: one variant for each driver's error type.
//!
//! Drivers return it, and the agent reads its message and its advice.

use thiserror::Error;

use super::{ipmi::IpmiError, program::ProgramError};
use crate::model::fault::{Advice, Advise};

/// A call to a BMC failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BmcError {
    /// A call by IPMI, in process or with `ipmitool`.
    #[error(transparent)]
    Ipmi(#[from] IpmiError),
    /// A call by the administrator's own program.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl Advise for BmcError {
    fn advice(&self) -> Advice {
        match self {
            Self::Ipmi(error) => error.advice(),
            Self::Program(error) => error.advice(),
        }
    }
}
