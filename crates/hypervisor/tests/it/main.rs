//! The real daemon and its vmm processes, without a virtual machine: the engine is a script that takes QEMU's
//! place. Everything up to the guest's first instruction is tested here, and everything after its end.

#![expect(
    clippy::unwrap_used,
    reason = "tests: helpers outside #[test] functions fail them, too"
)]

mod ca;
mod clients;
mod harness;
mod images;
mod lifecycle;
mod programs;
mod requests;
mod snapshots;
