//! The image subsystem against web servers, proxies and the tools that write images.

mod decode;
mod fetch;
mod library;
