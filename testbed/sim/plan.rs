//! The properties of a seed's site: its size, its limits, and the rate of each fault.

use hostler::lifecycle::Policy;

use crate::dice::Dice;

/// The first seed whose site may have Ironic's ramdisk.
const OTHER_RAMDISKS_FROM: u64 = 100_000_000;
/// The first seed whose ramdisks send logs.
const RAMDISK_LOGS_FROM: u64 = 300_000_000;

/// Properties of a site. Rates are per mille; with `0` everywhere the site has no faults.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) machines: usize,
    pub(crate) policy: Policy,
    /// Machines without a spec.
    pub(crate) spares: usize,
    /// Whether some machines have no BMC, and an operator presses their buttons.
    pub(crate) manual_power: bool,
    /// Whether some machines get Ironic's ramdisk, and some of hostler's ramdisks do not compare
    /// their disk although they should.
    pub(crate) other_ramdisks: bool,
    /// Whether ramdisks send their logs.
    pub(crate) ramdisk_logs: bool,
    /// Longest time between two random faults, in seconds.
    pub(crate) pause_s: u64,
    /// The weights of the faults and of operators' acts.
    pub(crate) operator: u64,
    pub(crate) crash: u64,
    pub(crate) bmc: u64,
    pub(crate) network: u64,
    pub(crate) store: u64,
    pub(crate) clock: u64,
    pub(crate) button: u64,
    pub(crate) stranger: u64,
    /// The rate of spontaneous failures of ramdisks, boots, writes and calls.
    pub(crate) mishap: u64,
    /// Longest write of an image, in minutes.
    pub(crate) write_m: u64,
}

impl Plan {
    /// A site without random faults.
    pub(crate) fn quiet(machines: usize, policy: Policy) -> Self {
        Self {
            machines,
            policy,
            spares: 0,
            manual_power: false,
            other_ramdisks: false,
            ramdisk_logs: false,
            pause_s: 3600,
            operator: 0,
            crash: 0,
            bmc: 0,
            network: 0,
            store: 0,
            clock: 0,
            button: 0,
            stranger: 0,
            mishap: 0,
            write_m: 5,
        }
    }

    /// The options of the site of `seed`, by its dice.
    pub(crate) fn of(seed: u64, dice: &mut Dice) -> Self {
        let machines = usize::try_from(if dice.permille(700) {
            dice.between(3, 16)
        } else {
            dice.between(17, 40)
        })
        .unwrap();
        let policy = Policy {
            attempts_max: dice.index(12) + 1,
            imagings_max: dice.index(5) + 1,
            polls_max: dice.index(16) + 1,
            breaker: !dice.permille(100),
            enforce_power: dice.permille(300),
        };
        // Some sites have many faults of one kind, others few.
        let mut weight = |most: u64| if dice.permille(250) { 0 } else { dice.between(1, most) };
        // Earlier seeds keep their sites, because they reproduce known errors.
        let other_ramdisks = seed >= OTHER_RAMDISKS_FROM && seed.is_multiple_of(2);
        Self {
            machines,
            policy,
            spares: machines / 8,
            manual_power: machines.is_multiple_of(2),
            other_ramdisks,
            ramdisk_logs: seed >= RAMDISK_LOGS_FROM,
            operator: 20 + weight(60),
            crash: weight(20),
            bmc: weight(20),
            network: weight(10),
            store: weight(8),
            clock: weight(4),
            button: weight(15),
            stranger: weight(10),
            mishap: weight(80),
            pause_s: dice.between(20, 600),
            write_m: dice.between(1, 20),
        }
    }
}
