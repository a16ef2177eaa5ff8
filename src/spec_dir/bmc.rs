//! The keys of `[bmc]`, and which of them each driver needs or ignores.
//!
//! Called by the schema. A key that the driver does not use must be refused in a spec, and ignored
//! in defaults.

use crate::model::{
    ids::NodeName,
    problem::ProblemKind,
    spec::{Bmc, BmcAddress, BmcDriver, CipherSuite, Password, Privilege},
    toml_reader::{Field, Section},
};

use super::values;

const PASSWORD_IN_SPEC: &str = "a password is never in a spec; write it into a file of the agent's \
    secrets directory, and here password_file = \"NAME\"";

/// How a machine's power is controlled.
pub(super) enum Control {
    /// By the BMC.
    Bmc(Bmc),
    /// By an operator.
    Manual,
}

/// The value of `bmc.driver`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DriverKey {
    /// The machine has a BMC with this driver.
    Bmc(BmcDriver),
    /// The machine has no BMC.
    Manual,
}

impl DriverKey {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bmc(driver) => driver.as_str(),
            Self::Manual => "none",
        }
    }
}

/// The drivers that use a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Every driver.
    AnyBmc,
    /// hostler's own IPMI client and `ipmitool`.
    Ipmi,
    /// hostler's own IPMI client.
    IpmiInProcess,
    /// The administrator's program.
    Program,
}

impl Use {
    /// The message about a key that the driver does not use.
    fn idle(self, driver: DriverKey) -> Option<String> {
        match (self, driver) {
            (Self::AnyBmc, DriverKey::Bmc(_))
            | (Self::Ipmi, DriverKey::Bmc(BmcDriver::Ipmi | BmcDriver::Ipmitool))
            | (Self::IpmiInProcess, DriverKey::Bmc(BmcDriver::Ipmi))
            | (Self::Program, DriverKey::Bmc(BmcDriver::Program)) => None,
            (Self::Program, DriverKey::Bmc(_)) => {
                Some("is of no use unless bmc.driver = \"program\"".to_owned())
            }
            (_, driver) => Some(format!("is of no use with bmc.driver = {:?}", driver.as_str())),
        }
    }
}

/// The section `[bmc]` with its driver; `None` for an unknown driver, which is refused already.
struct BmcKeys<'s, 'a> {
    section: &'s mut Section<'a>,
    driver: Option<DriverKey>,
}

impl<'a> BmcKeys<'_, 'a> {
    /// Returns a key, marked as unused if the driver does not use it.
    fn key(&mut self, key: &'static str, used_by: Use) -> Field<'a> {
        let field = self.section.key(key);
        match self.driver.and_then(|driver| used_by.idle(driver)) {
            Some(why) => field.idle(&why),
            None => field,
        }
    }

    fn is_by_program(&self) -> bool {
        self.driver == Some(DriverKey::Bmc(BmcDriver::Program))
    }
}

/// Reads the section `[bmc]` of the node with this name.
pub(super) fn control(bmc: &mut Section<'_>, name: Option<&NodeName>) -> Option<Control> {
    let drivers = [
        ("ipmi", DriverKey::Bmc(BmcDriver::Ipmi)),
        ("ipmitool", DriverKey::Bmc(BmcDriver::Ipmitool)),
        ("program", DriverKey::Bmc(BmcDriver::Program)),
        ("none", DriverKey::Manual),
    ];
    let driver = bmc.key("driver").or("ipmi").choice(&drivers);
    if driver.is_none() && bmc.has("driver") {
        bmc.excuse_missing();
    }
    let mut keys = BmcKeys { section: bmc, driver };
    let address = address(&mut keys, name);
    let login = login(&mut keys);
    let cipher_suite = keys.key("cipher_suite", Use::Ipmi).integer(|id| {
        u8::try_from(id)
            .map_err(|_| format!("cipher suite {id} does not exist"))
            .and_then(CipherSuite::try_from)
    });
    let match_uuid = keys.key("match_system_uuid", Use::Ipmi).or(false).flag();
    let console = keys.key("console", Use::IpmiInProcess).or(false).flag();
    let DriverKey::Bmc(driver) = driver? else { return Some(Control::Manual) };
    let speaks_ipmi = driver != BmcDriver::Program;
    if speaks_ipmi {
        login.password.as_ref()?;
    }
    Some(Control::Bmc(Bmc {
        driver,
        address: address?,
        username: login.username?,
        password: login.password,
        // Defaults may have an unused key.
        kg_file: login.kg_file.filter(|_| speaks_ipmi),
        privilege: login.privilege?,
        cipher_suite: cipher_suite.filter(|_| speaks_ipmi),
        match_system_uuid: match_uuid? && speaks_ipmi,
        console: console? && driver == BmcDriver::Ipmi,
    }))
}

/// Reads `bmc.program` and `bmc.address`, which together identify the BMC. A program's default
/// address is the node's name.
fn address(keys: &mut BmcKeys<'_, '_>, name: Option<&NodeName>) -> Option<BmcAddress> {
    let by_program = keys.is_by_program();
    let mut program = keys.key("program", Use::Program);
    if by_program {
        let reason = "bmc.driver = \"program\"";
        program = program.required_because(reason, "\"/etc/hostler/pdu\"");
    }
    let program = program.of_kind(ProblemKind::BadPath).text(values::program);
    let address = keys.key("address", Use::AnyBmc);
    if by_program {
        let address = match name {
            Some(name) => address.or(name.as_str()),
            None => address,
        };
        let address = address.text(values::hint);
        return Some(BmcAddress::by_program(&program?, &address?));
    }
    let address = address.of_kind(ProblemKind::BadAddress);
    let is_manual = keys.driver == Some(DriverKey::Manual);
    let address = if is_manual { address } else { address.required("\"192.0.2.20\"") };
    address.text(values::bmc_address)
}

/// The credentials for a BMC.
struct Login {
    username: Option<String>,
    password: Option<Password>,
    kg_file: Option<String>,
    privilege: Option<Privilege>,
}

fn login(keys: &mut BmcKeys<'_, '_>) -> Login {
    let by_program = keys.is_by_program();
    let has_credential = keys.section.has("password_credential");
    let has_password = keys.section.has("password");
    keys.section.forbid("password", ProblemKind::PasswordInSpec, PASSWORD_IN_SPEC);
    let username = keys.key("username", Use::AnyBmc).or("");
    let username =
        if by_program { username.text(values::label) } else { username.text(values::username) };
    let mut password_file = keys.key("password_file", Use::AnyBmc);
    if keys.driver != Some(DriverKey::Manual) {
        password_file = if has_credential {
            password_file.idle("is of no use with bmc.password_credential")
        } else if by_program || has_password {
            // A password is a problem by itself.
            password_file
        } else {
            password_file.required("\"edge-07.bmc\"")
        };
    }
    let password_file = password_file
        .of_kind(ProblemKind::BadPath)
        .text(values::password_file)
        .map(Password::PasswordFile);
    let credential = keys
        .key("password_credential", Use::AnyBmc)
        .text(values::credential)
        .map(Password::PasswordCredential);
    let kg_file =
        keys.key("kg_file", Use::Ipmi).of_kind(ProblemKind::BadPath).text(values::password_file);
    let privileges =
        [("administrator", Privilege::Administrator), ("operator", Privilege::Operator)];
    let privilege = keys.key("privilege", Use::Ipmi).or("administrator").choice(&privileges);
    Login { username, password: credential.or(password_file), kg_file, privilege }
}
