//! HTTP/1.1 to an address on this machine: one request per connection, every wait limited.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// A reply, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header lines as they came.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// A header's value; `name` in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(':'));
        headers
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON ({}): {text}", self.status))
    }
}

/// GET.
///
/// # Errors
/// No connection or no reply within `limit`.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Reply> {
    send(address, "GET", path, &[], &[], limit)
}

/// POST of JSON.
///
/// # Errors
/// No connection or no reply within `limit`.
pub fn post_json(
    address: SocketAddr,
    path: &str,
    body: &serde_json::Value,
    limit: Duration,
) -> Result<Reply> {
    let headers = [("content-type".to_owned(), "application/json".to_owned())];
    send(
        address,
        "POST",
        path,
        &headers,
        body.to_string().as_bytes(),
        limit,
    )
}

/// Any request.
///
/// # Errors
/// No connection or no reply within `limit`.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
    limit: Duration,
) -> Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        head += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    parse(&reply)
        .with_context(|| format!("{method} {path}: no HTTP reply in {} bytes", reply.len()))
}

fn parse(reply: &[u8]) -> Option<Reply> {
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&reply[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("\r\ntransfer-encoding: chunked");
    let body = &reply[end + 4..];
    let body = if chunked {
        unchunk(body)?
    } else {
        body.to_vec()
    };
    Some(Reply { status, head, body })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let start = line + 2;
        body.extend(rest.get(start..start.checked_add(size)?)?);
        rest = rest.get(start + size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_split_where_its_head_ends() {
        let reply = parse(b"HTTP/1.1 404 Not Found\r\nx: y\r\n\r\nbody").unwrap();
        assert_eq!(
            (reply.status, reply.body.as_slice()),
            (404, b"body".as_slice())
        );
    }

    #[test]
    fn chunks_are_joined_and_torn_ones_refused() {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice();
        let whole = [head, b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n"].concat();
        assert_eq!(parse(&whole).unwrap().body, b"abcd");
        assert!(parse(&[head, b"9\r\nabc"].concat()).is_none());
    }
}
