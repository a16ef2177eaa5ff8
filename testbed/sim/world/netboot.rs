//! A machine that comes on: its firmware boots the network, which the agent serves, or the disk.

use std::net::IpAddr;

use hostler::{
    lifecycle::{Event, Menu},
    model::{
        boot::{BootStage, Fetch},
        boot_report::BootReport,
        ids::{Digest, NodeName},
        netboot::{BootFile, Netboot, NetbootFiles},
        secret::{AttemptKey, BootToken},
    },
};

use super::{
    machine::{Content, Device, Quirk},
    site::{Caller, Happening, Site},
    work::root_of,
};

impl Site {
    /// Kernel and ramdisk are read and put into the cache.
    pub(crate) fn verify(&mut self, wanted: &Netboot) -> NetbootFiles {
        let mut verify = |path: &str| {
            let number =
                path.bytes().fold(7_u64, |hash, byte| hash * 31 % (1 << 40) + u64::from(byte));
            let digest: Digest = format!("sha256:{number:064x}").parse().unwrap();
            self.verified.insert(digest.clone());
            Some(digest)
        };
        NetbootFiles {
            kernel_digest: verify(&wanted.kernel),
            ramdisk_digest: verify(&wanted.ramdisk),
            ..wanted.unverified()
        }
    }

    /// The firmware is up and chooses a boot device.
    pub(crate) fn firmware(&mut self, m: usize, session: u64) {
        if !self.lives_on(m, session) {
            return;
        }
        if self.machines[m].quirk == Quirk::BootLoops {
            return self.after_s(60, 90, Happening::Firmware { machine: m, session });
        }
        let device = self.machines[m].boot_device();
        let netboots = self.machines[m].quirk != Quirk::NeverNetboots && !self.mishap(20);
        if device == Device::Disk || !netboots {
            return self.boot_disk(m);
        }
        // A dead agent serves nothing, and an unknown NIC gets nothing.
        let mac = self.machines[m].mac;
        let menu = self.menus.iter().find(|(_, (_, nics))| nics.contains(&mac));
        match menu.map(|(name, (menu, _))| (name.clone(), menu.clone())) {
            Some((node, Menu::Deploy(key))) if !self.dead => {
                let happening = Happening::Fetching { machine: m, session, node, key, stage: 0 };
                self.after_s(1, 5, happening);
            }
            Some((_, Menu::Network { files, command_line })) if !self.dead => {
                self.boot_own_kernel(m, &files, &command_line);
            }
            Some((node, Menu::LocalDisk)) if !self.dead => {
                self.soon(Happening::LocalMenu { machine: m, session, node });
                self.boot_disk(m);
            }
            _ => self.boot_disk(m),
        }
    }

    /// A machine netboots and comes to its own disk.
    pub(crate) fn local_menu(&self, m: usize, session: u64, node: &NodeName) -> Option<Event> {
        let fetch = self.fetch(m, node, BootStage::Menu);
        self.lives_on(m, session).then_some(Event::Fetched(fetch))
    }

    /// A boot file that the machine has fetched.
    fn fetch(&self, m: usize, node: &NodeName, stage: BootStage) -> Fetch {
        Fetch {
            refused_times: 0,
            unknown_mac: None,
            node: node.clone(),
            stage,
            path: "x".to_owned(),
            peer: self.machines[m].ip,
            sent_bytes: 1,
            complete: true,
        }
    }

    fn lives_on(&self, m: usize, session: u64) -> bool {
        self.machines[m].on && self.machines[m].session == session
    }

    /// Menu, kernel, ramdisk: each is evidence for the agent.
    pub(crate) fn fetching(
        &mut self,
        machine: usize,
        session: u64,
        node: &NodeName,
        key: AttemptKey,
        stage: u64,
    ) -> Option<Event> {
        if !self.lives_on(machine, session) {
            return None;
        }
        let stages = [BootStage::Menu, BootStage::Kernel, BootStage::Ramdisk];
        let Some(fetched) = stages.get(usize::try_from(stage).unwrap()) else {
            self.ramdisk_boots(machine, node.clone(), key);
            return None;
        };
        if self.mishap(10) {
            // The machine hangs there.
            return None;
        }
        let next =
            Happening::Fetching { machine, session, node: node.clone(), key, stage: stage + 1 };
        self.after_s(2, 20, next);
        Some(Event::Fetched(self.fetch(machine, node, *fetched)))
    }

    /// Boots the system's own kernel with the disk's content.
    fn boot_own_kernel(&mut self, m: usize, files: &[BootFile; 2], command_line: &str) {
        self.note(None, || format!("machine {m} boots {files:?} with {command_line}"));
        let unverified = files.iter().any(|file| match file {
            BootFile::Cached(digest) => !self.verified.contains(digest),
            BootFile::Path(_) => true,
        });
        if unverified {
            let what = format!("machine {m} was served {files:?}, which nobody has verified");
            self.broken("installed_is_true", None, what);
        }
        let machine = &self.machines[m];
        if let (true, Content::Whole(image)) = (machine.ordered, &machine.platters[0].content)
            && !command_line.ends_with(&format!("root=UUID={}", root_of(image)))
        {
            let what = format!("{image} was booted with {command_line}");
            self.broken("installed_is_true", None, what);
        }
        self.boot_disk(m);
    }

    fn boot_disk(&mut self, m: usize) {
        let machine = &self.machines[m];
        let (bmc, content) = (machine.bmc.clone(), machine.platters[0].content.clone());
        if machine.ordered && content == Content::Half {
            self.broken(
                "half_written_never_boots",
                None,
                format!("the machine of {bmc} was ordered to boot half a disk"),
            );
        }
        if !matches!(content, Content::Whole(_) | Content::Foreign) {
            return;
        }
        let session = self.machines[m].session;
        let happening = Happening::SystemUp { machine: m, session };
        let quirk = self.machines[m].quirk;
        match quirk {
            Quirk::NeverUp => {}
            Quirk::LateUp => self.after_s(1300, 4000, happening),
            _ if self.mishap(20) => self.after_s(1000, 3000, happening),
            _ => self.after_s(20, 240, happening),
        }
    }

    /// The machine's installed system comes up, unless it restarts the machine first.
    pub(crate) fn system_up(&mut self, m: usize, session: u64) {
        if !self.lives_on(m, session) {
            return;
        }
        if self.machines[m].quirk == Quirk::RebootsFirst {
            self.machines[m].quirk = Quirk::None;
            self.note(None, || format!("the system of machine {m} restarts it"));
            self.switch(m, false);
            return self.switch(m, true);
        }
        self.note(None, || format!("the system of machine {m} is up"));
        self.machines[m].up = Some(session);
        self.machines[m].ups += 1;
        if let Some((node, token)) = self.machines[m].platters[0].token.clone() {
            // The system repeats its call whether the agent received it or not.
            for call in 0..4 {
                let peer = self.machines[m].ip;
                let (node, token) = (node.clone(), token.clone());
                let happening = Happening::BootCall { node, token, peer };
                self.after_s(call * 60, call * 60 + 40, happening);
            }
        }
    }

    /// Calls as an installed system, real or imitated.
    pub(crate) fn boot_call(
        &mut self,
        node: NodeName,
        token: BootToken,
        peer: IpAddr,
    ) -> Option<(NodeName, Event)> {
        if self.mishap(60) {
            return None;
        }
        self.requests += 1;
        let request = self.requests;
        self.open_requests.insert(request, Caller::System);
        let report = BootReport { hostname: Some(node.to_string()), ..BootReport::default() };
        Some((node, Event::BootCalled { request, peer, token, report }))
    }

    /// A stranger calls with a token that no attempt has, or with an old one.
    pub(crate) fn stranger_boots(&mut self) {
        let Some(n) = self.tokens.len().checked_sub(1) else { return };
        let (node, old) = self.tokens[n.saturating_sub(self.dice.index(8))].clone();
        // The token of an attempt that waits for its record counts already.
        let is_current =
            self.decided(&node).and_then(|record| record.boot_token.as_ref()) == Some(&old);
        let guess = BootToken::from_bytes(&[9; 32]);
        let token = if is_current { guess } else { old };
        let peer = IpAddr::from([203, 0, 113, 66]);
        self.after_ms(10, 500, Happening::BootCall { node, token, peer });
    }
}
