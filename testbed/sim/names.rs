//! Short names of states and operations, for the trace and for violations.

use hostler::lifecycle::{FirstBoot, Operation, Record};

/// A state without what it carries.
pub(crate) fn state_name(record: &Record) -> &'static str {
    use hostler::lifecycle::State::{
        Booting, CleaningUp, Failed, Held, Idle, Imaging, PoweringOn, Preparing, Restarting,
        SettingPower, Switching, WaitingCompleted, WaitingRamdisk,
    };
    match &record.state {
        Idle => "idle",
        Held { .. } => "held",
        Failed => "failed",
        SettingPower { .. } => "setting-power",
        Preparing { .. } => "preparing",
        PoweringOn { .. } => "powering-on",
        WaitingRamdisk { .. } => "waiting-ramdisk",
        Imaging { granted: false, .. } => "waiting-to-image",
        Imaging { granted: true, .. } => "imaging",
        Switching { .. } => "switching",
        WaitingCompleted { .. } => "waiting-completed",
        Restarting { .. } => "restarting",
        Booting { boot: FirstBoot::Waiting } => "booting",
        Booting { boot: FirstBoot::Overdue } => "booting-overdue",
        Booting { boot: FirstBoot::Restarting } => "booting-restarting",
        CleaningUp { .. } => "cleaning-up",
    }
}

pub(crate) fn operation_name(operation: &Operation) -> &'static str {
    match operation {
        Operation::PollPower => "poll",
        Operation::ConfirmPower => "confirm-power",
        Operation::Prepare => "prepare",
        Operation::PowerOn => "power-on",
        Operation::Image { .. } => "image",
        Operation::Release(_) => "release",
        Operation::Restart { .. } => "restart",
        Operation::ProbePort { .. } => "probe-port",
        Operation::SetPower(_) => "set-power",
        Operation::CleanUp => "clean-up",
        Operation::NetbootFiles { .. } => "netboot-files",
    }
}
