//! A machine's identity: its BMC's address and the MAC addresses of its network interfaces.
//!
//! Consent to WIPE a disk is for one machine, so that the core compares machines whenever a spec
//! changes. Nothing here may guess: machines that share neither BMC nor network interface are
//! different.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{
    ids::MacAddr,
    spec::{BmcAddress, MachineId, NodeSpec},
};

/// A machine, as a spec names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The BMC's address, `host:port` or a URL in files; `None`: the machine has no BMC.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_address",
        deserialize_with = "read_address"
    )]
    pub bmc: Option<BmcAddress>,
    /// The MAC addresses of the network interfaces it may netboot from, at least one.
    pub macs: Vec<MacAddr>,
}

/// The difference between a node's previous and present machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineChange {
    /// BMC and network interfaces are the same.
    None,
    /// The BMC's address or network interfaces differ, and one of them is shared: the same machine.
    Part,
    /// Nothing is shared: another machine.
    Whole,
}

impl Machine {
    /// The machine that this spec names.
    pub fn named_by(spec: &NodeSpec) -> Self {
        Self { bmc: spec.bmc_address().cloned(), macs: spec.boot.macs.clone() }
    }

    /// The identity under which records keep the machine.
    pub fn id(&self) -> MachineId {
        match &self.bmc {
            Some(bmc) => MachineId::Bmc(bmc.clone()),
            None => MachineId::Nics(self.macs.clone()),
        }
    }

    /// The difference to the spec's machine.
    pub fn change_to(&self, spec: &NodeSpec) -> MachineChange {
        change([self.bmc.as_ref(), spec.bmc_address()], [&self.macs, &spec.boot.macs])
    }

    /// Whether the spec names one of its network interfaces.
    pub fn shares_mac(&self, spec: &NodeSpec) -> bool {
        self.macs.iter().any(|mac| spec.boot.macs.contains(mac))
    }
}

impl NodeSpec {
    /// The difference between this spec's machine and that of `new`.
    pub fn machine_change(&self, new: &Self) -> MachineChange {
        change([self.bmc_address(), new.bmc_address()], [&self.boot.macs, &new.boot.macs])
    }
}

fn change(
    [bmc, new_bmc]: [Option<&BmcAddress>; 2],
    [macs, new_macs]: [&[MacAddr]; 2],
) -> MachineChange {
    let shared = macs.iter().filter(|mac| new_macs.contains(mac)).count();
    if bmc == new_bmc && shared == macs.len() && shared == new_macs.len() {
        MachineChange::None
    } else if bmc.is_some() && bmc == new_bmc || shared > 0 {
        MachineChange::Part
    } else {
        MachineChange::Whole
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bmc {
            Some(bmc) => write!(f, "BMC {bmc}, MAC ")?,
            None => f.write_str("MAC ")?,
        }
        for (n, mac) in self.macs.iter().enumerate() {
            write!(f, "{}{mac}", if n == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

#[expect(clippy::ref_option, reason = "serde hands over the field")]
fn write_address<S: Serializer>(
    bmc: &Option<BmcAddress>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    bmc.as_ref().map(ToString::to_string).serialize(serializer)
}

fn read_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BmcAddress>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(bmc: Option<&str>, macs: &[u8]) -> Machine {
        let bmc = bmc.map(|host| BmcAddress::at(host, 623));
        let macs = macs.iter().map(|last| MacAddr::new([0x52, 0x54, 0, 0, 0, *last])).collect();
        Machine { bmc, macs }
    }

    #[test]
    fn a_machine_that_shares_neither_bmc_nor_mac_is_another_one() {
        use MachineChange::{None as Same, Part, Whole};
        let cases = [
            (machine(Some("a"), &[1, 2]), machine(Some("a"), &[2, 1]), Same),
            (machine(None, &[1]), machine(None, &[1]), Same),
            (machine(Some("a"), &[1]), machine(Some("b"), &[1]), Part),
            (machine(Some("a"), &[1]), machine(Some("a"), &[2]), Part),
            (machine(Some("a"), &[1]), machine(Some("a"), &[1, 2]), Part),
            (machine(Some("a"), &[1]), machine(None, &[1]), Part),
            (machine(Some("a"), &[1, 2]), machine(Some("b"), &[2, 3]), Part),
            (machine(Some("a"), &[1]), machine(Some("b"), &[2]), Whole),
            (machine(Some("a"), &[1]), machine(None, &[2]), Whole),
            (machine(None, &[1]), machine(None, &[2]), Whole),
        ];
        for (old, new, expected) in cases {
            for (one, other) in [(&old, &new), (&new, &old)] {
                let bmcs = [one.bmc.as_ref(), other.bmc.as_ref()];
                assert_eq!(change(bmcs, [&one.macs, &other.macs]), expected, "{one} to {other}");
            }
        }
    }

    #[test]
    fn a_machine_in_a_file_reads_back_the_same_and_a_damaged_address_does_not() {
        let by_name = machine(Some("bmc-07.example"), &[1, 2]);
        for machine in [by_name, machine(Some("2001:db8::20"), &[1]), machine(None, &[3])] {
            let text = toml::to_string(&machine).unwrap();
            assert_eq!(toml::from_str::<Machine>(&text).unwrap(), machine, "{text}");
        }
        let address = BmcAddress::by_program("/etc/hostler/pdu", "outlet 7#b:623");
        assert_eq!(address.program(), Some(("/etc/hostler/pdu", "outlet 7#b:623")));
        let by_program = Machine { bmc: Some(address), ..machine(None, &[4]) };
        let text = toml::to_string(&by_program).unwrap();
        assert_eq!(toml::from_str::<Machine>(&text).unwrap(), by_program, "{text}");
        let text = "bmc = \"192.0.2.20:623\"\nmacs = [\"52:54:00:00:00:01\"]\n";
        assert_eq!(toml::to_string(&machine(Some("192.0.2.20"), &[1])).unwrap(), text);
        for damaged in [
            ":623",
            "192.0.2.20:0623",
            "192.0.2.20:99999",
            "2001:db8::20:623",
            "program:pdu#7",
            "program:/pdu",
        ] {
            let text = text.replace("192.0.2.20:623", damaged);
            let read = toml::from_str::<Machine>(&text);
            assert!(read.is_err(), "{damaged} is read as {read:?}");
        }
        assert!(toml::from_str::<Machine>(&text.replace("macs", "mcas")).is_err());
    }
}
