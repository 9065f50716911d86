//! The test server of attested TLS, as a program for tests in other languages.
//!
//! Its argument says what is wrong with it: `none`, `copied-certificate`, `copied-document` and so on, as below. It writes a line of JSON with its
//! URL, its root and PCR0, answers `heard`, `accepted` and `resumed` with the number of requests, connections and resumed sessions, `renew` with `ok`, and
//! ends with its standard input.

#![expect(clippy::unwrap_used, reason = "a test program fails by panicking")]

#[path = "../../../crates/client/tests/service/mod.rs"]
mod service;
#[path = "../../../crates/client/tests/service/tls.rs"]
mod tls;

use std::io::BufRead;

use tls::{Fault, Server};

fn main() {
    let fault = match std::env::args().nth(1).as_deref() {
        Some("none") => Fault::None,
        Some("copied-certificate") => Fault::CopiedCertificate,
        Some("copied-document") => Fault::CopiedDocument,
        Some("other-purpose") => Fault::OtherPurpose,
        Some("ordinary") => Fault::Ordinary,
        Some("old") => Fault::Old,
        Some("debug") => Fault::Debug,
        Some("tls12") => Fault::Tls12,
        Some("no-nonces") => Fault::NoNonces,
        Some("other-nonce") => Fault::OtherNonce,
        Some("long-answer") => Fault::LongAnswer,
        Some("until-the-end") => Fault::UntilTheEnd,
        Some("cut") => Fault::Cut,
        other => panic!("{other:?} is no fault of a server"),
    };
    let server = Server::start(fault);
    let (url, root) = (server.url(), server.root_pem().replace('\n', "\\n"));
    let pcr0 = service::pcr(0);
    println!(r#"{{"url": "{url}", "root": "{root}", "pcr0": "{pcr0}"}}"#);
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "heard" => println!("{}", server.heard().len()),
            "resumed" => println!("{}", server.resumed()),
            "accepted" => println!("{}", server.accepted()),
            "renew" => {
                server.renew();
                println!("ok");
            }
            other => panic!("{other:?} is no command"),
        }
    }
}
