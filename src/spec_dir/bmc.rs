//! The keys of `[bmc]`: which of them a driver needs, and which are of no use to it.
//!
//! Called by the schema. A key that the driver cannot use is refused where the spec says it itself, and lies idle
//! where a default does.

use crate::model::{
    ids::NodeName,
    spec::{Bmc, BmcAddress, BmcDriver, CipherSuite, Password, Privilege},
    toml_reader::{Field, Section},
};

use super::values;

/// How a machine's power is controlled.
pub(super) enum Control {
    /// By its BMC.
    Bmc(Bmc),
    /// By an operator.
    Manual,
}

/// The keys that only some drivers use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Every driver.
    AnyBmc,
    /// The drivers that speak IPMI.
    Ipmi,
    /// The driver that speaks IPMI in process.
    IpmiInProcess,
    /// The driver of a program.
    Program,
}

impl Use {
    /// Why the key is of no use to the driver, if that is so. `None` is no BMC at all.
    fn idle(self, driver: Option<BmcDriver>) -> Option<String> {
        let driver = match (self, driver) {
            (Self::AnyBmc, Some(_))
            | (Self::Ipmi, Some(BmcDriver::Ipmi | BmcDriver::Ipmitool))
            | (Self::IpmiInProcess, Some(BmcDriver::Ipmi))
            | (Self::Program, Some(BmcDriver::Program)) => return None,
            (Self::Program, Some(_)) => {
                return Some("is of no use unless bmc.driver = \"program\"".to_owned());
            }
            (_, driver) => driver.map_or("none", BmcDriver::as_str),
        };
        Some(format!("is of no use with bmc.driver = {driver:?}"))
    }
}

/// A key of `[bmc]`, idle if the driver cannot use it. A driver that is not known has been refused already.
fn key<'a>(
    bmc: &mut Section<'a>,
    key: &'static str,
    driver: Option<Option<BmcDriver>>,
    used_by: Use,
) -> Field<'a> {
    let field = bmc.key(key);
    match driver.and_then(|driver| used_by.idle(driver)) {
        Some(why) => field.idle(&why),
        None => field,
    }
}

/// All of `[bmc]`, for the node of this name.
pub(super) fn control(bmc: &mut Section<'_>, name: Option<&NodeName>) -> Option<Control> {
    let drivers = [
        ("ipmi", Some(BmcDriver::Ipmi)),
        ("ipmitool", Some(BmcDriver::Ipmitool)),
        ("program", Some(BmcDriver::Program)),
        ("none", None),
    ];
    let driver = bmc.key("driver").or("ipmi").choice(&drivers);
    if driver.is_none() && bmc.has("driver") {
        bmc.excuse_missing();
    }
    let address = address(bmc, driver, name);
    let login = login(bmc, driver);
    let cipher_suite = key(bmc, "cipher_suite", driver, Use::Ipmi).integer(|id| {
        u8::try_from(id)
            .map_err(|_| format!("cipher suite {id} does not exist"))
            .and_then(CipherSuite::try_from)
    });
    let match_uuid = key(bmc, "match_system_uuid", driver, Use::Ipmi).or(false).flag();
    let console = key(bmc, "console", driver, Use::IpmiInProcess).or(false).flag();
    let Some(driver) = driver? else { return Some(Control::Manual) };
    let speaks_ipmi = driver != BmcDriver::Program;
    if speaks_ipmi {
        login.password.as_ref()?;
    }
    Some(Control::Bmc(Bmc {
        driver,
        address: address?,
        username: login.username?,
        password: login.password,
        // A default may lie idle.
        kg_file: login.kg_file.filter(|_| speaks_ipmi),
        privilege: login.privilege?,
        cipher_suite: cipher_suite.filter(|_| speaks_ipmi),
        match_system_uuid: match_uuid? && speaks_ipmi,
        console: console? && driver == BmcDriver::Ipmi,
    }))
}

/// `bmc.program` and `bmc.address`: together they say which BMC it is. A program that is given no address is given
/// the node's name.
fn address(
    bmc: &mut Section<'_>,
    driver: Option<Option<BmcDriver>>,
    name: Option<&NodeName>,
) -> Option<BmcAddress> {
    let by_program = driver == Some(Some(BmcDriver::Program));
    let mut program = key(bmc, "program", driver, Use::Program);
    if by_program {
        program = program.required();
    }
    let program = program.text(values::program);
    let address = key(bmc, "address", driver, Use::AnyBmc);
    if by_program {
        let address = match name {
            Some(name) => address.or(name.as_str()),
            None => address,
        };
        let address = address.text(values::hint);
        return Some(BmcAddress::by_program(&program?, &address?));
    }
    let address = if driver == Some(None) { address } else { address.required() };
    address.text(values::bmc_address)
}

/// The user that a BMC is asked as.
struct Login {
    username: Option<String>,
    password: Option<Password>,
    kg_file: Option<String>,
    privilege: Option<Privilege>,
}

fn login(bmc: &mut Section<'_>, driver: Option<Option<BmcDriver>>) -> Login {
    let by_program = driver == Some(Some(BmcDriver::Program));
    let has_credential = bmc.has("password_credential");
    let username = key(bmc, "username", driver, Use::AnyBmc).or("");
    let username =
        if by_program { username.text(values::label) } else { username.text(values::username) };
    let mut password_file = key(bmc, "password_file", driver, Use::AnyBmc);
    if driver != Some(None) {
        password_file = if has_credential {
            password_file.idle("is of no use with bmc.password_credential")
        } else if by_program {
            password_file
        } else {
            password_file.required()
        };
    }
    let password_file = password_file.text(values::password_file).map(Password::PasswordFile);
    let credential = key(bmc, "password_credential", driver, Use::AnyBmc)
        .text(values::credential)
        .map(Password::PasswordCredential);
    let kg_file = key(bmc, "kg_file", driver, Use::Ipmi).text(values::password_file);
    let privileges =
        [("administrator", Privilege::Administrator), ("operator", Privilege::Operator)];
    let privilege =
        key(bmc, "privilege", driver, Use::Ipmi).or("administrator").choice(&privileges);
    Login { username, password: credential.or(password_file), kg_file, privilege }
}
