//! Real virtual machines: every test starts an installation of its own and leaves nothing behind.
//!
//! `cargo xtask test` builds what these tests run and tells them where it is.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test and its helpers fail by panicking"
)]

mod cgroups;
mod clients;
mod images;
mod key_release;
mod lifecycle;
mod machine;
mod signing;
mod vsock;

use enclos_e2e::image::Builder;
use enclos_e2e::stack::Stack;
use enclos_e2e::workbench::Workbench;

/// An installation and a builder of images that trust its KMS.
struct Fixture {
    stack: Stack,
    bench: Workbench,
}

impl Fixture {
    fn new() -> Self {
        let bench = Workbench::from_env().unwrap();
        Self {
            stack: Stack::start(&bench).unwrap(),
            bench,
        }
    }

    fn builder(&self) -> Builder<'_> {
        Builder::new(
            &self.bench,
            self.stack.dir.join("images"),
            self.stack.kms.ca(),
        )
        .unwrap()
    }
}
