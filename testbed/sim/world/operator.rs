//! Operators: they write, break, rename and delete specs, one by one or all at once,
//! approve, retry, and mend.

use hostler::{
    lifecycle::Event,
    model::{
        ids::{MacAddr, NodeName},
        spec::{Bmc, BmcAddress, BootCheck, Goal, NodeSpec, WantedPower},
        status::{Booted, Status},
    },
};

use super::{
    World,
    site::{Directory, Happening, LaterEdit, Site},
    specs::{bmc_at, image, set_bmc},
};

impl World {
    pub(crate) fn operate(&mut self) {
        let names: Vec<NodeName> = self.site.files.keys().cloned().collect();
        let Some(node) = (!names.is_empty()).then(|| self.site.dice.pick(&names).clone()) else {
            return self.site.bring_back();
        };
        match self.site.dice.roll(40) {
            0..=4 => self.bring(&node, Event::Approve),
            5 => self.approve_all(),
            6..=8 => self.bring(&node, Event::Retry),
            9..=11 => self.site.mend(),
            12 if self.site.dice.permille(300) => self.site.lose_directory(),
            _ => self.site.edit(&node, &names),
        }
        self.site.after_ms(50, 1500, Happening::Scan);
    }

    pub(crate) fn approve_all(&mut self) {
        self.for_each_node(&Event::Approve);
    }

    fn for_each_node(&mut self, event: &Event) {
        let names = self.executor.as_ref().map(|executor| executor.fleet().names());
        for name in names.unwrap_or_default() {
            self.bring(&name, event.clone());
        }
    }

    pub(crate) fn do_edit(&mut self, edit: LaterEdit) {
        match edit {
            LaterEdit::Redeploy { node, value } => {
                self.site.change(&node, |spec| spec.redeploy = Some(value));
            }
            LaterEdit::Mend => self.site.mend(),
            LaterEdit::LetGoOn => {
                self.site.restart_unseen();
                self.approve_all();
                self.for_each_node(&Event::Retry);
            }
        }
        self.site.after_ms(50, 1500, Happening::Scan);
    }
}

impl Site {
    /// Machines whose own system did not come up are restarted.
    fn restart_unseen(&mut self) {
        let missed = |status: &Status| {
            status.installed.as_ref().and_then(|installed| installed.booted) == Some(Booted::Missed)
        };
        let missed = self.shown.iter().filter(|(_, status)| missed(status));
        let homes: Vec<usize> =
            missed.filter_map(|(node, _)| Some(self.files.get(node)?.home)).collect();
        for home in homes {
            self.restart_manually(home, false);
        }
    }

    pub(crate) fn change(&mut self, node: &NodeName, change: impl FnOnce(&mut NodeSpec)) {
        if let Some(file) = self.files.get_mut(node) {
            change(&mut file.spec);
        }
    }

    fn edit(&mut self, node: &NodeName, names: &[NodeName]) {
        let which = self.dice.roll(24);
        self.note(Some(node), || format!("an operator's edit, number {which}"));
        match which {
            0..=3 => {
                let value = self.dice.roll(5).to_string();
                self.change(node, |spec| spec.redeploy = Some(value));
            }
            4 => self.change(node, |spec| spec.redeploy = None),
            5 | 6 => {
                let n = self.dice.roll(4);
                self.change(node, |spec| spec.image.checksum = image(n));
            }
            7 | 8 => {
                let goals = [Goal::Deployed, Goal::Deployed, Goal::Available, Goal::Unmanaged];
                let goal = *self.dice.pick(&goals);
                self.change(node, |spec| spec.goal = goal);
            }
            9 | 10 => {
                let powers = [WantedPower::On, WantedPower::Off, WantedPower::Ignore];
                let power = *self.dice.pick(&powers);
                self.change(node, |spec| spec.power = power);
            }
            11 => self.change(node, |spec| spec.paused = !spec.paused),
            12 => self.edit_timeouts(node),
            13 => self.redeploy_many(names, false),
            14 => self.redeploy_many(names, true),
            15 => self.mistype(node),
            16 | 22 => self.replace_machine(node),
            17 => self.break_file(node),
            18 => self.clash(node, names),
            19 => self.rename(node),
            20 => drop(self.files.remove(node)),
            23 => self.replace_part(node),
            _ => self.bring_back(),
        }
    }

    fn edit_timeouts(&mut self, node: &NodeName) {
        let minutes = std::time::Duration::from_secs(60 * self.dice.between(5, 40));
        // Also another kernel, without another random number, so that histories stay comparable.
        let kernel = format!("vmlinuz-{}", minutes.as_secs() / 60 % 3);
        self.change(node, |spec| {
            spec.timeouts.ramdisk = minutes;
            match minutes.as_secs() / 60 % 5 {
                0 => spec.boot_check = BootCheck::None,
                1 => spec.boot_check = BootCheck::Tcp { port: 443, address: None },
                2 => spec.boot_check = BootCheck::Call,
                _ => spec.timeouts.first_boot = minutes,
            }
            if let Some(netboot) = &mut spec.image.netboot {
                netboot.kernel = kernel;
            }
        });
    }

    /// Changes `redeploy` of many specs, in one `git push` or one by one by a playbook.
    fn redeploy_many(&mut self, names: &[NodeName], playbook: bool) {
        let value = format!("all-{}", self.dice.roll(1000));
        let mut at_s = 0;
        for node in names {
            if self.dice.permille(200) {
                continue;
            }
            let edit = LaterEdit::Redeploy { node: node.clone(), value: value.clone() };
            if playbook {
                at_s += self.dice.between(2, 40);
            }
            self.after_s(at_s, at_s, Happening::LaterEdit(edit));
        }
    }

    fn mistype(&mut self, node: &NodeName) {
        let has_bmc = self.files.get(node).is_some_and(|file| file.spec.bmc.is_some());
        if self.plan.manual_power && self.dice.permille(300) {
            // The BMC is removed, or an invalid one added.
            let made_up = BmcAddress::at("192.0.2.253", 623);
            self.change(node, |spec| set_bmc(spec, (!has_bmc).then(|| Box::new(bmc_at(&made_up)))));
        } else if self.dice.permille(500) && has_bmc {
            self.change(node, |spec| {
                spec.bmc.as_mut().unwrap().move_to("192.0.2.254");
            });
        } else {
            let mac = MacAddr::new([0x52, 0x54, 0, 0, 1, 99]);
            self.change(node, |spec| spec.boot.macs = vec![mac]);
        }
    }

    /// Replaces a machine by a spare one, often with more changes in the same edit.
    fn replace_machine(&mut self, node: &NodeName) {
        let Some(home) = self.spare() else { return };
        let (bmc, mac) = (self.bmc_of(home), self.machines[home].mac);
        let mac_too = self.dice.permille(800);
        let Some(file) = self.files.get_mut(node) else { return };
        file.home = home;
        set_bmc(&mut file.spec, bmc);
        if mac_too {
            file.spec.boot.macs = vec![mac];
        }
        if self.dice.permille(500) {
            let value = format!("with-it-{}", self.dice.roll(1000));
            self.change(node, |spec| spec.redeploy = Some(value));
        }
        if self.dice.permille(200) {
            let n = self.dice.roll(4);
            self.change(node, |spec| spec.image.checksum = image(n));
        }
        if self.dice.permille(200) {
            let goal = *self.dice.pick(&[Goal::Deployed, Goal::Available]);
            let power = *self.dice.pick(&[WantedPower::On, WantedPower::Off]);
            self.change(node, |spec| (spec.goal, spec.power) = (goal, power));
        }
        if self.dice.permille(100) {
            self.rename(node);
        }
    }

    /// Replaces a network interface or a BMC's address, and nothing else of the machine.
    fn replace_part(&mut self, node: &NodeName) {
        let has_bmc = self.files.get(node).is_some_and(|file| file.spec.bmc.is_some());
        if has_bmc && self.dice.permille(500) {
            let host = format!("192.0.2.{}", 251 + self.dice.roll(2));
            self.change(node, |spec| spec.bmc.as_mut().unwrap().move_to(host));
        } else {
            let last = 97 + u8::try_from(self.dice.roll(2)).unwrap();
            self.change(node, |spec| {
                spec.boot.macs = vec![MacAddr::new([0x52, 0x54, 0, 0, 1, last])];
            });
        }
        if self.dice.permille(500) {
            let value = format!("with-it-{}", self.dice.roll(1000));
            self.change(node, |spec| spec.redeploy = Some(value));
        }
    }

    fn bmc_of(&self, machine: usize) -> Option<Box<Bmc>> {
        let machine = &self.machines[machine];
        machine.has_bmc.then(|| Box::new(bmc_at(&machine.bmc)))
    }

    fn spare(&mut self) -> Option<usize> {
        let homes: Vec<usize> = self.files.values().map(|file| file.home).collect();
        let free: Vec<usize> = (0..self.machines.len()).filter(|m| !homes.contains(m)).collect();
        (!free.is_empty()).then(|| *self.dice.pick(&free))
    }

    fn break_file(&mut self, node: &NodeName) {
        if let Some(file) = self.files.get_mut(node) {
            file.broken = true;
        }
        self.after_s(10, 3600, Happening::LaterEdit(LaterEdit::Mend));
    }

    fn clash(&mut self, node: &NodeName, names: &[NodeName]) {
        let other = self.dice.pick(names).clone();
        let Some(other) = self.files.get(&other).map(|file| file.spec.clone()) else { return };
        self.change(node, |spec| match (&mut spec.bmc, other.bmc) {
            (Some(bmc), Some(other)) => bmc.address = other.address,
            _ => spec.boot.macs = other.boot.macs,
        });
    }

    fn rename(&mut self, node: &NodeName) {
        let Some(mut file) = self.files.remove(node) else { return };
        let name: NodeName = format!("node-{:03}", self.names).parse().unwrap();
        self.names += 1;
        file.spec.name = name.clone();
        self.files.insert(name, file);
    }

    /// Writes a spec for a machine without one.
    fn bring_back(&mut self) {
        if let Some(home) = self.spare() {
            self.write_new_spec(home);
            self.after_ms(50, 1500, Happening::Scan);
        }
    }

    fn lose_directory(&mut self) {
        let empty = self.dice.permille(500);
        self.directory = if empty { Directory::Empty } else { Directory::Lost };
        self.after_s(10, 1800, Happening::LaterEdit(LaterEdit::Mend));
    }

    /// Repairs the directory and its files.
    pub(crate) fn mend(&mut self) {
        self.directory = Directory::There;
        let truth: Vec<(Option<Box<Bmc>>, MacAddr)> =
            (0..self.machines.len()).map(|m| (self.bmc_of(m), self.machines[m].mac)).collect();
        for file in self.files.values_mut() {
            file.broken = false;
            let (bmc, mac) = &truth[file.home];
            set_bmc(&mut file.spec, bmc.clone());
            file.spec.boot.macs = vec![*mac];
        }
    }

    /// The operators' final edits: no node is paused, and every file is correct.
    pub(crate) fn last_word(&mut self) {
        self.mend();
        for file in self.files.values_mut() {
            file.spec.paused = false;
        }
        self.after_ms(50, 100, Happening::Scan);
    }
}
