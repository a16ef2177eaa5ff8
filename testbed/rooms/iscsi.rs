//! hostler's initiator against tgtd, a target nobody here wrote.

mod tgtd;
