//! PID 1 of the deploy ramdisk.

fn main() {}
