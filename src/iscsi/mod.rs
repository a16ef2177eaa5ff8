//! hostler's own iSCSI initiator, in user space: reads and writes a target's disk without kernel
//! module, root or another program.
//!
//! The imaging uses [`Lun`]. Everything from a target is untrusted: it is bounded and checked, and
//! ends the session where RFC 7143 does not allow it. This module never writes a byte that no
//! caller asked for, and never logs a secret.
//!
//! The parts of RFC 7143 in use, by section, and the tests of it:
//!
//! - 4.2.2: `CmdSN` window, `StatSN`, serial arithmetic (`window`). Tests:
//!   `the_window_opens_and_closes_across_the_wrap`, `a_status_number_is_taken_once_and_in_order`,
//!   `status_numbers_and_acknowledgements_must_fit`,
//!   `the_window_holds_commands_back_and_opens_again`.
//! - 4.2.3.3, 11.5: LOGICAL UNIT RESET of what a logout would leave behind (`connection`). Tests:
//!   `a_logout_ends_cancelled_writes_before_it_returns_and_leaves_no_session`.
//! - 4.2.4.2, 13.10, 13.11: immediate and unsolicited data (`task`). Tests:
//!   `data_follows_what_was_agreed_in_every_combination`,
//!   `every_extreme_of_negotiation_writes_and_reads_the_same_bytes`.
//! - 6.1: text keys and their limits (`text`). Tests: `texts_that_are_not_pairs_are_refused`,
//!   `answers_may_be_spread_over_pdus_and_unknown_keys_are_not_understood`.
//! - 6.2, 13: operational negotiation (`negotiate`). Tests:
//!   `every_extreme_a_target_may_answer_is_accepted`, `answers_beyond_the_offer_are_refused`.
//! - 6.3: login stages, sequence, status (`login`). Tests:
//!   `a_login_without_credentials_takes_two_rounds`,
//!   `a_response_out_of_sequence_or_with_another_tag_is_refused`,
//!   `a_status_says_what_to_do_about_it`.
//! - 6.3.5, 11.12.5: a random ISID for each session (`connection`). Tests:
//!   `several_sessions_of_one_initiator_write_to_one_disk_at_once`.
//! - 7.1.4.1: recovery level 0: any error ends the session (`session`). Tests:
//!   `after_a_failure_everybody_has_an_answer_and_nothing_is_sent`,
//!   `a_target_that_was_restarted_takes_a_new_session_and_the_rest_of_the_data`.
//! - 11.1, 13.1: padding, CRC32C digests (`wire`). Tests:
//!   `digests_and_padding_are_where_rfc_7143_puts_them`,
//!   `any_changed_bit_is_found_with_digests_on`,
//!   `a_byte_changed_on_the_way_there_never_reaches_the_disk`.
//! - 11.4: SCSI status, sense, residuals (`disk`, `scsi`). Tests:
//!   `good_with_a_residual_is_not_taken_for_a_whole_write`,
//!   `a_busy_target_is_asked_again_after_a_pause_and_not_for_ever`,
//!   `a_unit_attention_is_answered_by_the_same_command_and_not_for_ever`.
//! - 11.7: Data-In and Data-Out in order (`task`). Tests:
//!   `read_data_is_taken_in_order_and_never_more_than_asked`.
//! - 11.8, 13.13, 13.17: R2T, `MaxBurstLength`, `MaxOutstandingR2T` (`task`). Tests:
//!   `r2ts_that_ask_for_anything_but_the_next_bytes_are_violations`,
//!   `the_longest_bursts_and_every_depth_of_queue_write_and_read_the_same_bytes`.
//! - 11.9: asynchronous messages (`session`). Tests:
//!   `a_target_that_asks_for_a_logout_gets_it_after_the_command`,
//!   `rejects_and_announced_ends_fail_the_command_and_later_ones`.
//! - 11.14: logout (`connection`). Tests:
//!   `dropping_the_disk_closes_the_connection_and_ends_its_task`,
//!   `istgt_has_the_same_bytes_with_and_without_digests_and_queue`.
//! - 11.17: Reject (`session`). Tests: `a_rejected_pdu_ends_the_session_with_the_reason`.
//! - 11.18, 11.19: NOP both ways (`session`). Tests:
//!   `a_ping_in_the_midst_of_commands_is_answered_with_its_tag`,
//!   `a_target_that_hangs_while_nothing_is_asked_is_found_by_the_keepalive`.
//! - 12.1.3: CHAP with MD5, one-way and mutual (`chap`, `login`). Tests:
//!   `chap_lets_in_who_knows_the_secret_and_nobody_else`, `a_target_cannot_get_round_chap`,
//!   `istgt_lets_in_who_knows_the_secret_and_proves_that_it_knows_its_own`.
//!
//! Left out on purpose: discovery (the ramdisk reports the name), several connections in one
//! session (callers open several sessions instead), recovery levels 1 and 2, markers, redirections,
//! bidirectional commands.

mod advice;
mod chap;
mod connection;
mod disk;
mod error;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod login;
mod negotiate;
mod options;
mod pdu;
mod scsi;
mod session;
mod task;
mod text;
mod window;
mod wire;
mod zeroing;
mod zeros;

pub use chap::Chap;
pub use disk::{Lun, TargetAddress};
pub use error::{DigestOf, IscsiError, IscsiErrorKind, LoginRefusal};
#[cfg(fuzzing)]
pub use fuzz::fuzz;
pub use options::IscsiOptions;
pub use scsi::{ScsiFailure, Sense};
pub use zeroing::Zeroing;

#[cfg(test)]
mod tests {
    /// The source files of the tests in the list.
    const SOURCES: [&str; 11] = [
        include_str!("disk/tests.rs"),
        include_str!("login/tests.rs"),
        include_str!("negotiate.rs"),
        include_str!("session/tests.rs"),
        include_str!("text.rs"),
        include_str!("window.rs"),
        include_str!("wire/tests.rs"),
        include_str!("zeroing.rs"),
        include_str!("../../testbed/integration/iscsi.rs"),
        include_str!("../../testbed/integration/iscsi/istgt.rs"),
        include_str!("../../testbed/integration/iscsi/zeros.rs"),
    ];

    #[test]
    fn every_test_the_list_of_sections_names_exists() {
        let list = include_str!("mod.rs").lines().map_while(|line| line.strip_prefix("//!"));
        let list: String = list.collect();
        // Tests are the only names with an underscore.
        let names: Vec<&str> = list.split('`').filter(|name| name.contains('_')).collect();
        for name in &names {
            let function = format!("fn {name}(");
            assert!(SOURCES.iter().any(|source| source.contains(&function)), "{name}");
        }
        assert!(names.len() > 30, "{names:?}");
    }
}
