//! The core's tests: the story of a deploy, one table of every phase against every event, and random histories.

mod histories;
mod story;
mod support;
mod table;
