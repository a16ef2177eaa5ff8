//! A TFTP client for behaviour that real clients cannot be made to show.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

/// The ERROR by which a client ends a transfer.
const NO_THANKS: &[u8] = b"\0\x05\0\0no thanks\0";

/// A packet of a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Data(u16, Vec<u8>),
    Oack(Vec<(String, String)>),
    Error(u16, String),
}

/// One request's socket.
pub(super) struct Client {
    socket: UdpSocket,
    server: SocketAddr,
    /// The transfer's own address, after its first packet.
    pub(super) transfer: Option<SocketAddr>,
}

impl Client {
    pub(super) fn new(server: SocketAddr) -> Self {
        Self::on(server.ip(), server)
    }

    /// A client with its own address.
    pub(super) fn on(address: IpAddr, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(7))).unwrap();
        Self { socket, server, transfer: None }
    }

    pub(super) fn request(&self, name: &str, options: &[(&str, &str)]) {
        self.send_to_port(&request(1, name, options));
    }

    /// Sends the request until there is an answer, as every real client does.
    pub(super) fn ask(&mut self, name: &str, options: &[(&str, &str)]) -> Reply {
        for _ in 0..60 {
            self.request(name, options);
            if let Some(reply) = self.reply_within(Duration::from_secs(1)) {
                return reply;
            }
        }
        panic!("the server is silent");
    }

    pub(super) fn send_to_port(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.server).unwrap();
    }

    pub(super) fn ack(&self, block: u16) {
        let [high, low] = block.to_be_bytes();
        self.send(&[0, 4, high, low]);
    }

    /// Ends the transfer by an ERROR.
    pub(super) fn give_up(&self) {
        self.send(NO_THANKS);
    }

    pub(super) fn send(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.transfer.unwrap()).unwrap();
    }

    /// The next reply; a silent server fails the test.
    pub(super) fn reply(&mut self) -> Reply {
        self.reply_within(Duration::from_secs(7)).expect("the server is silent")
    }

    pub(super) fn reply_within(&mut self, limit: Duration) -> Option<Reply> {
        self.socket.set_read_timeout(Some(limit)).unwrap();
        let mut buffer = vec![0; 70_000];
        let (length, from) = loop {
            match self.socket.recv_from(&mut buffer) {
                // Another test's client still sends to an earlier transfer with this port.
                Ok((length, _))
                    if buffer.starts_with(b"\0\x04") || buffer[..length] == *NO_THANKS => {}
                Ok(received) => break received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{error}"),
            }
        };
        self.transfer = Some(from);
        let number = |at: usize| u16::from_be_bytes([buffer[at], buffer[at + 1]]);
        let rest = &buffer[2..length];
        Some(match number(0) {
            3 => Reply::Data(number(2), rest[2..].to_vec()),
            5 => Reply::Error(number(2), texts(&rest[2..]).remove(0)),
            6 => Reply::Oack(texts(rest).chunks(2).map(|p| (p[0].clone(), p[1].clone())).collect()),
            other => panic!("opcode {other}"),
        })
    }
}

/// A request's bytes; 1 reads, 2 writes.
pub(super) fn request(opcode: u8, name: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = vec![0, opcode];
    for text in [name, "octet"].into_iter().chain(options.iter().flat_map(|(k, v)| [*k, *v])) {
        bytes.extend(text.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// Fetches a file as RFC 7440 says; the server's ERROR is the error.
pub(super) fn get(
    server: SocketAddr,
    name: &str,
    options: &[(&str, &str)],
) -> Result<Vec<u8>, (u16, String)> {
    get_losing(&mut Client::new(server), name, options, |_| false)
}

/// Fetches a file from a machine's own address.
pub(super) fn get_from(address: IpAddr, server: SocketAddr, name: &str) -> Vec<u8> {
    let options = [("blksize", "1428"), ("tsize", "0")];
    get_losing(&mut Client::on(address, server), name, &options, |_| false).unwrap()
}

/// Fetches a file through a network that loses the packets of `loses`.
pub(super) fn get_losing(
    client: &mut Client,
    name: &str,
    options: &[(&str, &str)],
    mut loses: impl FnMut(&Reply) -> bool,
) -> Result<Vec<u8>, (u16, String)> {
    let mut first = Some(client.ask(name, options));
    let (mut block_size, mut window, mut content) = (512, 1, Vec::new());
    // The last block received in order, and the number of blocks since the last ACK.
    let (mut last, mut unacknowledged) = (0_u16, 0);
    loop {
        let reply = first.take().unwrap_or_else(|| client.reply());
        if loses(&reply) {
            continue;
        }
        match reply {
            Reply::Oack(granted) => {
                for (option, value) in granted {
                    match option.as_str() {
                        "blksize" => block_size = value.parse().unwrap(),
                        "windowsize" => window = value.parse().unwrap(),
                        _ => {}
                    }
                }
                client.ack(0);
            }
            Reply::Error(code, message) => return Err((code, message)),
            Reply::Data(number, data) if number == last.wrapping_add(1) => {
                let end = data.len() < block_size;
                content.extend(data);
                (last, unacknowledged) = (number, unacknowledged + 1);
                if end || unacknowledged == window {
                    client.ack(last);
                    unacknowledged = 0;
                }
                if end {
                    return Ok(content);
                }
            }
            // After a gap, request the next block again. A repeated block means a lost ACK.
            Reply::Data(..) => {
                client.ack(last);
                unacknowledged = 0;
            }
        }
    }
}

fn texts(bytes: &[u8]) -> Vec<String> {
    let mut texts: Vec<String> =
        bytes.split(|b| *b == 0).map(|text| String::from_utf8(text.to_vec()).unwrap()).collect();
    assert_eq!(texts.pop().as_deref(), Some(""), "the last text has no end");
    texts
}
