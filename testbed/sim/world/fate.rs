//! Random faults: outages, crashes, clock changes, pressed power buttons.

use super::{
    World,
    machine::Quirk,
    site::{Happening, Site},
};

type Whim = fn(&mut World);

impl World {
    /// Causes one fault, and schedules the next.
    pub(crate) fn whim(&mut self) {
        let plan = self.site.plan.clone();
        if self.site.calm || plan.operator == 0 {
            return;
        }
        self.site.after_ms(1000, plan.pause_s * 1000, Happening::Whim);
        let whims: [(u64, Whim); 8] = [
            (plan.operator, Self::operate),
            (plan.crash, |world| world.site.light_fuse()),
            (plan.bmc, |world| world.site.trouble_bmc()),
            (plan.network, |world| world.site.trouble_network()),
            (plan.store, |world| world.site.fill_store()),
            (plan.clock, |world| world.site.set_clock()),
            (plan.button, |world| world.site.press_button()),
            (plan.stranger, |world| world.site.stranger_calls()),
        ];
        let all: u64 = whims.iter().map(|(weight, _)| weight).sum();
        let mut left = self.site.dice.roll(all);
        for (weight, whim) in whims {
            if left < weight {
                return whim(self);
            }
            left -= weight;
        }
    }
}

impl Site {
    /// Kills the agent after so many more of its calls: often in the middle of one step.
    fn light_fuse(&mut self) {
        let calls = self.dice.roll(40);
        self.note(None, || format!("the agent will be killed in {calls} calls"));
        self.fuse = Some(calls);
    }

    fn trouble_bmc(&mut self) {
        let m = self.dice.index(self.machines.len());
        let until = self.t + 1000 * self.dice.between(10, 3600);
        let (which, quirk) = (self.dice.roll(7), self.dice.roll(12));
        let machine = &mut self.machines[m];
        let faults = &mut machine.faults;
        match which {
            0 => faults.silent_until = until,
            1 => faults.slow_until = until,
            2 => faults.idle_until = until,
            3 => faults.forgets_until = until,
            4 => faults.locked_until = until,
            5 => machine.quirk = Quirk::None,
            _ => {
                machine.quirk = match quirk {
                    0 => Quirk::NeverNetboots,
                    1 => Quirk::RamdiskError,
                    2 => Quirk::WrongDisks,
                    3 => Quirk::Mute,
                    4 => Quirk::StalledWrite,
                    5 => Quirk::TargetDies,
                    6 => Quirk::LateCompleted,
                    7 => Quirk::BootLoops,
                    8 => Quirk::NeverUp,
                    9 => Quirk::LateUp,
                    10 => Quirk::RebootsFirst,
                    _ => Quirk::None,
                }
            }
        }
        let (bmc, quirk) = (machine.bmc.clone(), machine.quirk);
        self.note(None, || {
            format!("trouble {which} for the machine of {bmc} until {until}, {quirk:?}")
        });
    }

    fn trouble_network(&mut self) {
        self.bad_network_until = self.t + 1000 * self.dice.between(10, 1200);
    }

    fn fill_store(&mut self) {
        self.store_full_until = self.t + 1000 * self.dice.between(5, 600);
    }

    fn set_clock(&mut self) {
        let by = [-86_400, -7200, -3600, -60, 60, 3600, 7200, 86_400];
        let by_s: i64 = *self.dice.pick(&by);
        // The run starts at noon on a day long after the clock's first, and never gets before that.
        self.skew_ms += by_s * 1000;
        self.note(None, || format!("the clock is set by {by_s} s"));
        self.judge_clock();
    }

    fn press_button(&mut self) {
        let m = self.dice.index(self.machines.len());
        let on = !self.machines[m].on;
        self.note(None, || format!("somebody switches machine {m} on: {on}"));
        self.machines[m].ordered = false;
        self.switch(m, on);
    }

    /// Ends all faults, and repairs their damage.
    pub(crate) fn come_to_rest(&mut self) {
        self.calm = true;
        self.fuse = None;
        self.bad_network_until = 0;
        self.store_full_until = 0;
        for machine in &mut self.machines {
            machine.faults = super::machine::BmcFaults::default();
            machine.quirk = Quirk::None;
        }
        self.note(None, || "all trouble ends".to_owned());
    }
}
