//! Which answers are tried again.

use super::*;

fn verdict(response: u8, status: u8, sense: &[u8]) -> Verdict {
    Verdict::of(&Outcome { response, status, sense: sense.to_vec(), ..Outcome::default() })
}

#[test]
fn only_what_was_not_carried_out_is_tried_again() {
    let sense = |key, asc, ascq| [0, 8, 0x72, key, asc, ascq, 0, 0, 0, 0];
    let failure = |key, asc, ascq| ScsiFailure::Sense(Sense { key, asc, ascq });
    assert_eq!(verdict(0, 0, &[]), Verdict::Good);
    assert_eq!(verdict(0, 2, &sense(6, 0x29, 0)), Verdict::Again(failure(6, 0x29, 0)));
    assert_eq!(verdict(0, 0x08, &[]), Verdict::Later(ScsiFailure::Status(0x08)));
    assert_eq!(verdict(0, 0x28, &[]), Verdict::Later(ScsiFailure::Status(0x28)));
    assert_eq!(verdict(0, 2, &sense(2, 4, 1)), Verdict::Later(failure(2, 4, 1)));
    assert_eq!(verdict(0, 2, &sense(2, 0x3a, 0)), Verdict::Failed(failure(2, 0x3a, 0)));
    assert_eq!(verdict(0, 2, &sense(3, 0x0c, 0)), Verdict::Failed(failure(3, 0x0c, 0)));
    assert_eq!(verdict(0, 2, &[]), Verdict::Failed(ScsiFailure::NoSense));
    assert_eq!(verdict(0, 0x18, &[]), Verdict::Failed(ScsiFailure::Status(0x18)));
    assert_eq!(verdict(1, 0, &[]), Verdict::Failed(ScsiFailure::TargetFailure(1)));
}
