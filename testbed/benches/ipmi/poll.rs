//! hostler's side of the contest: one look at the power state of each BMC, as the agent looks.

use std::time::Duration;

use hostler::{
    bmc::{
        Timing,
        ipmi::{IpmiClient, IpmiConfig},
    },
    model::{
        secret::Secret,
        spec::{CipherSuite, HostPort, Privilege},
    },
};
use tokio::{task::JoinSet, time::Instant};

use crate::bmcs::{PASSWORD, USER};

/// For one look.
const LIMIT: Duration = Duration::from_secs(60);

/// Looks at all of them at once: `SUITE PORT…`.
pub(crate) fn look(words: &[String]) {
    let (suite, ports) = words.split_first().unwrap();
    let suite = suite.parse::<u8>().unwrap().try_into().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut looks = JoinSet::new();
        for port in ports {
            looks.spawn(look_at(port.clone(), suite));
        }
        while let Some(line) = looks.join_next().await {
            println!("{}", line.unwrap());
        }
    });
}

async fn look_at(port: String, suite: CipherSuite) -> String {
    let address = HostPort { host: "127.0.0.1".to_owned(), port: port.parse().unwrap() };
    let bmc = IpmiClient::new(
        IpmiConfig {
            address: address.clone(),
            username: USER.to_owned(),
            password: Secret::new(PASSWORD.to_owned()),
            kg: None,
            privilege: Privilege::Administrator,
            cipher_suite: Some(suite),
            spacing: Duration::from_secs(1),
        },
        Timing::default(),
    );
    let state = bmc.power_state(Instant::now() + LIMIT).await.unwrap();
    format!("{address}: {}", state.as_str())
}
