//! Framing over an in-memory stream: written PDUs read back, and damaged ones do not.

use proptest::prelude::*;

use super::*;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

fn pdu(data: &[u8]) -> Pdu {
    let mut bhs = [0x11; BHS_BYTES];
    bhs[4] = 0;
    bhs[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
    Pdu { bhs, data: Bytes::copy_from_slice(data) }
}

fn written(digests: Digests, pdus: Vec<Pdu>) -> Vec<u8> {
    block_on(async {
        let mut bytes = Vec::new();
        let mut writer = PduWriter::new(&mut bytes);
        writer.use_digests(digests);
        for pdu in pdus {
            writer.push(pdu);
        }
        writer.flush().await.unwrap();
        assert!(writer.is_empty() && writer.has_room());
        bytes
    })
}

fn read(digests: Digests, bytes: &[u8]) -> Result<Vec<u8>, IscsiErrorKind> {
    block_on(async {
        let mut reader = PduReader::new(bytes);
        reader.use_digests(digests);
        let (bhs, mut data) = (reader.header().await?, BytesMut::new());
        reader.data(&bhs, &mut data).await?;
        Ok(data.to_vec())
    })
}

const BOTH: Digests = Digests { header: true, data: true };

#[test]
fn digests_and_padding_are_where_rfc_7143_puts_them() {
    let bytes = written(BOTH, vec![pdu(&[0; 29]), pdu(&[])]);
    assert_eq!(bytes.len(), 48 + 4 + 32 + 4 + 48 + 4);
    // RFC 7143 appendix B.4: 32 bytes of zeros, in the byte order of the wire.
    assert_eq!(bytes[48 + 4 + 32..][..4], [0xaa, 0x36, 0x91, 0x8a]);
    let plain = written(Digests::default(), vec![pdu(&[1, 2, 3, 4, 5])]);
    assert_eq!(plain[48..], [1, 2, 3, 4, 5, 0, 0, 0]);
}

#[test]
fn any_changed_bit_is_found_with_digests_on() {
    let bytes = written(BOTH, vec![pdu(b"some data")]);
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let expected = if bit < 52 * 8 { DigestOf::Header } else { DigestOf::Data };
        assert_eq!(read(BOTH, &changed), Err(IscsiErrorKind::Digest(expected)), "bit {bit}");
    }
}

#[test]
fn no_more_is_read_than_was_declared() {
    let mut long = pdu(&[]);
    long.bhs[5..8].copy_from_slice(&[4, 0, 1]);
    let result = read(Digests::default(), &long.bhs);
    assert!(matches!(result, Err(IscsiErrorKind::Protocol(_))), "{result:?}");
    let mut additional = pdu(&[]);
    additional.bhs[4] = 1;
    assert!(matches!(read(Digests::default(), &additional.bhs), Err(IscsiErrorKind::Protocol(_))));
    let gone = IscsiErrorKind::TargetGone("closed by the target".to_owned());
    assert_eq!(read(Digests::default(), &long.bhs[..20]), Err(gone));
}

#[test]
fn a_batch_is_bounded_whatever_the_size_of_its_pdus() {
    for bytes in [0, 512, 8192, 262_144] {
        let mut sink = Vec::new();
        let mut writer = PduWriter::new(&mut sink);
        let mut count = 0;
        while writer.has_room() {
            writer.push(pdu(&vec![0; bytes]));
            count += 1;
        }
        assert!(
            count <= SLICES_MAX && writer.bytes <= BATCH_BYTES + 262_144 + 200,
            "{count} of {bytes}"
        );
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        data in proptest::collection::vec(any::<u8>(), 0..70),
        header: bool,
        of_data: bool,
    ) {
        let digests = Digests { header, data: of_data };
        prop_assert_eq!(read(digests, &written(digests, vec![pdu(&data)])), Ok(data));
    }

    #[test]
    fn reading_never_panics_on_any_bytes(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        header: bool,
        data: bool,
    ) {
        drop(read(Digests { header, data }, &bytes));
    }
}
