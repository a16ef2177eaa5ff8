//! The error of every driver: one variant for each driver's own.
//!
//! Made by the drivers, read by the agent.

use thiserror::Error;

use super::{ipmi::IpmiError, program::ProgramError};
use crate::model::fault::{Advice, Advise};

/// A BMC did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BmcError {
    /// By IPMI, in process or with `ipmitool`.
    #[error(transparent)]
    Ipmi(#[from] IpmiError),
    /// By a program of the administrator's.
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
