//! PID 1 of the deploy ramdisk.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostler::ramdisk::init()
}
