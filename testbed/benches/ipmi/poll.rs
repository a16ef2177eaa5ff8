//! hostler's contender: one poll of the power state of each BMC, as the agent does it.

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

/// Time limit of one poll.
const LIMIT: Duration = Duration::from_secs(60);

/// Polls all BMCs at once: `SUITE PORT…`.
pub(crate) fn poll(words: &[String]) {
    let (suite, ports) = words.split_first().unwrap();
    let suite = suite.parse::<u8>().unwrap().try_into().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut polls = JoinSet::new();
        for port in ports {
            polls.spawn(poll_bmc(port.clone(), suite));
        }
        while let Some(line) = polls.join_next().await {
            println!("{}", line.unwrap());
        }
    });
}

async fn poll_bmc(port: String, suite: CipherSuite) -> String {
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
