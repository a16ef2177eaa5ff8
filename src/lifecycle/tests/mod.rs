//! The core's tests: the story of a deploy, one table of every phase against every event, and random histories
//! against a reference.

mod histories;
mod site;
mod story;
mod support;
mod table;
