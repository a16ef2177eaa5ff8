//! Images as the usual tools write them.

mod decode;
mod library;
