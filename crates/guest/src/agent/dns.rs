//! Names inside the enclave: those of the KMS, and `localhost`. There is no other network to name.
//!
//! Everything else is NXDOMAIN, at once, and logged: a library that looks for a host outside fails where it can
//! be seen instead of waiting for a time-out.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::kms_names::SERVICE_ADDRESS;
use crate::log;

/// Seconds that an answer may be kept: the names never change while the enclave lives.
const TTL: u32 = 300;

/// Longest query, over UDP or TCP; a name has at most 255 bytes.
const MAX_QUERY: usize = 1232;

/// Lines of the log for unknown names; an application that looks one up for ever shall not fill the console.
const MAX_LINES: u32 = 200;

/// TCP connections at a time, and how long each may take over a query.
const MAX_CONNECTIONS: usize = 32;
const TCP_TIMEOUT: Duration = Duration::from_secs(5);

/// The names that have an address.
#[derive(Debug)]
pub struct Zone {
    names: Vec<Name>,
    lines: AtomicU32,
}

impl Zone {
    /// A zone in which `names` lead to the agent. A name that is none is left out.
    #[must_use]
    pub fn new(names: &[String]) -> Self {
        let parse = |name: &String| Name::from_ascii(format!("{name}.")).ok();
        Self {
            names: names.iter().filter_map(parse).collect(),
            lines: AtomicU32::new(0),
        }
    }

    /// Answers one message; nothing for bytes that are no query.
    #[must_use]
    pub fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let request = Message::from_vec(bytes).ok()?;
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata.recursion_desired = request.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = match (request.metadata.op_code, &request.queries[..]) {
            (OpCode::Query, [query]) => {
                reply.add_query(query.clone());
                self.look_up(query, &mut reply)
            }
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        reply.to_vec().ok()
    }

    fn look_up(&self, query: &Query, reply: &mut Message) -> ResponseCode {
        let name = query.name();
        if query.query_class() != DNSClass::IN {
            return ResponseCode::Refused;
        }
        let (v4, v6) = if self.names.contains(name) {
            (SERVICE_ADDRESS, None)
        } else if is_localhost(name) {
            (Ipv4Addr::LOCALHOST, Some(Ipv6Addr::LOCALHOST))
        } else {
            self.log(name);
            return ResponseCode::NXDomain;
        };
        reply.metadata.authoritative = true;
        let data = match query.query_type() {
            RecordType::A => Some(RData::A(A(v4))),
            RecordType::AAAA => v6.map(|address| RData::AAAA(AAAA(address))),
            _ => None,
        };
        reply
            .answers
            .extend(data.map(|data| Record::from_rdata(name.clone(), TTL, data)));
        ResponseCode::NoError
    }

    fn log(&self, name: &Name) {
        let line = self.lines.fetch_add(1, Ordering::Relaxed);
        if line < MAX_LINES {
            log::line(
                "enclos-agent",
                format_args!("dns: {name} does not exist in the enclave"),
            );
        }
    }
}

fn is_localhost(name: &Name) -> bool {
    let text = name.to_ascii().to_ascii_lowercase();
    matches!(text.trim_end_matches('.'), "localhost" | "ip6-localhost")
}

/// Answers datagrams for ever.
pub async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = [0; MAX_QUERY];
    loop {
        let Ok((len, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(reply) = zone.answer(buffer.get(..len).unwrap_or_default()) {
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}

/// Answers connections for ever.
pub async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>) {
    let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let zone = Arc::clone(&zone);
        tokio::spawn(async move {
            while let Ok(Ok(())) = timeout(TCP_TIMEOUT, exchange(&mut stream, &zone)).await {}
            drop(permit);
        });
    }
}

/// One query and its answer, each after two bytes of length.
async fn exchange(stream: &mut TcpStream, zone: &Zone) -> std::io::Result<()> {
    let len = usize::from(stream.read_u16().await?);
    if len > MAX_QUERY {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; len];
    stream.read_exact(&mut query).await?;
    let reply = zone.answer(&query).ok_or(std::io::ErrorKind::InvalidData)?;
    let len = u16::try_from(reply.len()).map_err(std::io::Error::other)?;
    stream
        .write_all(&[&len.to_be_bytes(), &reply[..]].concat())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, kind: RecordType) -> Message {
        let zone = Zone::new(&["kms.eu-west-3.amazonaws.com".to_owned()]);
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let reply = zone.answer(&message.to_vec().unwrap()).unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(
            (reply.metadata.id, reply.metadata.message_type),
            (7, MessageType::Response)
        );
        reply
    }

    #[test]
    fn the_kms_leads_to_the_agent_in_any_case_of_letters() {
        for name in [
            "kms.eu-west-3.amazonaws.com.",
            "KMS.eu-West-3.AmazonAWS.com.",
        ] {
            let reply = ask(name, RecordType::A);
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert_eq!(reply.answers[0].data, RData::A(A(SERVICE_ADDRESS)));
        }
        let reply = ask("kms.eu-west-3.amazonaws.com.", RecordType::AAAA);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.is_empty());
    }

    #[test]
    fn localhost_is_local_and_all_else_does_not_exist() {
        assert_eq!(ask("localhost.", RecordType::A).answers.len(), 1);
        assert_eq!(ask("localhost.", RecordType::AAAA).answers.len(), 1);
        for name in [
            "example.com.",
            "amazonaws.com.",
            "x.kms.eu-west-3.amazonaws.com.",
        ] {
            let reply = ask(name, RecordType::A);
            assert_eq!(
                reply.metadata.response_code,
                ResponseCode::NXDomain,
                "{name}"
            );
        }
    }

    #[test]
    fn nonsense_and_answers_get_no_answer() {
        let zone = Zone::new(&[]);
        assert_eq!(zone.answer(&[]), None);
        assert_eq!(zone.answer(&[0xff; 40]), None);
        let response = Message::response(1, OpCode::Query).to_vec().unwrap();
        assert_eq!(zone.answer(&response), None);
        let none = Message::new(1, MessageType::Query, OpCode::Query)
            .to_vec()
            .unwrap();
        let reply = Message::from_vec(&zone.answer(&none).unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    }

    #[tokio::test]
    async fn tcp_and_udp_answer() {
        let zone = Arc::new(Zone::new(&[]));
        let mut message = Message::new(9, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(
            Name::from_ascii("localhost.").unwrap(),
            RecordType::A,
        ));
        let query = message.to_vec().unwrap();

        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(serve_udp(socket, Arc::clone(&zone)));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&query, address).await.unwrap();
        let mut reply = [0; 512];
        let len = timeout(TCP_TIMEOUT, client.recv(&mut reply))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(Message::from_vec(&reply[..len]).unwrap().answers.len(), 1);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_tcp(listener, zone));
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            stream
                .write_u16(u16::try_from(query.len()).unwrap())
                .await
                .unwrap();
            stream.write_all(&query).await.unwrap();
            let len = usize::from(stream.read_u16().await.unwrap());
            stream.read_exact(&mut reply[..len]).await.unwrap();
            assert_eq!(Message::from_vec(&reply[..len]).unwrap().answers.len(), 1);
        }
        stream.write_u16(u16::MAX).await.unwrap();
        assert!(
            timeout(TCP_TIMEOUT, stream.read_u8())
                .await
                .unwrap()
                .is_err()
        );
    }
}
