//! The way in for the fuzz target, and nowhere else: a target that answers with any bytes, from its login on.

use std::{
    pin::pin,
    task::{Context, Waker},
};

use bytes::BytesMut;
use tokio::sync::oneshot;

use super::{
    chap::Chap,
    error::ErrorKind,
    login::{Identity, LoggedIn, Login, Next, Random},
    negotiate::{Digests, Negotiated},
    pdu, scsi,
    session::Session,
    task::{Asker, Command, Data},
    wire::PduReader,
};
use crate::model::secret::Secret;

/// The first byte says how to begin: bit 0 with CHAP, 1 mutual, 2 after the login, 3 and 4 digests. The rest is what the target sends.
pub fn fuzz(bytes: &[u8]) {
    scsi::is_disk(bytes);
    scsi::luns(bytes);
    scsi::block_limits(bytes);
    scsi::unmaps_to_zeros(bytes);
    drop(scsi::Sense::parse(bytes).map(|sense| sense.to_string()));
    for disk in [scsi::capacity_16(bytes), scsi::capacity_10(bytes)].into_iter().flatten() {
        assert!(disk.blocks.checked_mul(u64::from(disk.block_bytes)).is_some());
    }
    let Some((mode, stream)) = bytes.split_first() else { return };
    // Bytes in memory are never waited for.
    let done = pin!(talk(*mode, stream)).poll(&mut Context::from_waker(Waker::noop()));
    assert!(done.is_ready());
}

async fn talk(mode: u8, stream: &[u8]) -> Result<(), ErrorKind> {
    let secret = |text: &str| Secret::new(text.to_owned());
    let mutual = (mode & 2 != 0).then(|| ("target".to_owned(), secret("their secret")));
    let chap = Chap { username: "node".to_owned(), secret: secret("our secret"), mutual };
    let identity = Identity {
        initiator_iqn: "iqn.test:i",
        target_iqn: "iqn.test:t",
        chap: (mode & 1 != 0).then_some(&chap),
        digests: Digests { header: mode & 8 != 0, data: mode & 16 != 0 },
        random: Random { isid: [0x80, 1, 2, 3, 4, 5], identifier: [7], challenge: [9; 16] },
    };
    let mut reader = PduReader::new(stream);
    let login = if mode & 4 == 0 {
        log_in(&mut reader, &identity).await?
    } else {
        LoggedIn { negotiated: Negotiated::default(), exp_stat_sn: 1, max_cmd_sn: 32 }
    };
    reader.use_digests(login.negotiated.digests);
    let mut session = Session::new(&login);
    let mut answers = Vec::new();
    for data in [Data::In(4096), Data::Out(vec![7; 100_000].into()), Data::None] {
        let (answer, receiver) = oneshot::channel();
        answers.push(receiver);
        let command = Command { lun: [0; 8], cdb: scsi::test_unit_ready(), data };
        session.submit(command, Asker { answer, slot: None });
    }
    loop {
        while session.next_pdu().is_some() {}
        let bhs = reader.header().await?;
        let mut incoming = session.open(&bhs)?;
        reader.data(&bhs, &mut incoming.data).await?;
        session.receive(incoming)?;
    }
}

async fn log_in(
    reader: &mut PduReader<&[u8]>,
    identity: &Identity<'_>,
) -> Result<LoggedIn, ErrorKind> {
    let (mut login, _) = Login::start(identity)?;
    loop {
        let (bhs, mut text) = (reader.header().await?, BytesMut::new());
        reader.data(&bhs, &mut text).await?;
        let response =
            pdu::decode(&bhs).map_err(|opcode| ErrorKind::Protocol(opcode.to_string()))?;
        if let Next::Done(done) = login.receive(&response, &text)? {
            return Ok(done);
        }
    }
}
