//! A TFTP client of minimal cost: it keeps no data, and compares each block with the expected
//! content.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

/// Longest wait for a block. After a loss, a server repeats it sooner.
const LIMIT: Duration = Duration::from_secs(20);

/// Receive buffer for a window of the largest blocks, in bytes: the system's default is a little
/// less.
const RECEIVE_BYTES: usize = 200 << 10;

/// Fetches a file and compares it with its content.
pub(crate) fn compare(server: SocketAddr, name: &str, block: &str, window: &str, content: &[u8]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BYTES).unwrap();
    let words = [name, "octet", "blksize", block, "windowsize", window];
    let request = words.map(|word| format!("{word}\0")).concat();
    socket.send_to(&[b"\0\x01", request.as_bytes()].concat(), server).unwrap();

    let mut buffer = vec![0; 70_000];
    let (length, transfer) = socket.recv_from(&mut buffer).unwrap();
    socket.connect(transfer).unwrap();
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let granted = |option: &str| {
        let at = answer.find(&format!("{option}\0"))? + option.len() + 1;
        Some(answer[at..].split('\0').next().unwrap().parse::<usize>().unwrap())
    };
    // The server must grant the requested block size.
    let block: usize = block.parse().unwrap();
    assert!(answer.starts_with("\0\x06") && granted("blksize") == Some(block), "{answer:?}");
    let window = granted("windowsize").unwrap_or(1);

    let (mut had, mut last, mut since) = (0, 0_u16, 0);
    let acknowledge = |last: u16| {
        let [high, low] = last.to_be_bytes();
        socket.send(&[0, 4, high, low]).unwrap();
    };
    acknowledge(0);
    loop {
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..2], [0, 3], "{:?}", String::from_utf8_lossy(&buffer[..length]));
        let data = &buffer[4..length];
        if u16::from_be_bytes([buffer[2], buffer[3]]) != last.wrapping_add(1) {
            // RFC 7440: one ACK for a gap, not one for every later block.
            if since != 0 || window == 1 {
                acknowledge(last);
                since = 0;
            }
            continue;
        }
        assert!(content[had..].starts_with(data), "another file");
        (had, last, since) = (had + data.len(), last.wrapping_add(1), since + 1);
        let end = data.len() < block;
        if end || since == window {
            acknowledge(last);
            since = 0;
        }
        if end {
            assert_eq!(had, content.len());
            return;
        }
    }
}
