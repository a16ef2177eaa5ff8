//! The adapters against other authors' programs: tgtd, pyghmi, `ipmi_sim`, nginx, tinyproxy, curl,
//! tftp-hpa. One binary, so that it links once.
//!
//! `./testbed/check` runs it. A missing program fails its tests by name; no test is skipped.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]
#![allow(missing_docs, reason = "tests are not an interface")]

mod admin;
mod agent;
mod callback;
mod consent_words;
mod dependencies;
mod dhcp;
mod docs;
#[path = "../e2e/documents.rs"]
mod documents;
mod drive;
mod http;
mod image;
mod imaging;
mod invariants;
mod ipmi;
mod iscsi;
mod layers;
mod namespace;
mod package;
mod ports;
mod tables;
mod tftp;
mod unit;
