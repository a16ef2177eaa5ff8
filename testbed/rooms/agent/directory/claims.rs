//! Entries of a spec directory that are no spec at all.
