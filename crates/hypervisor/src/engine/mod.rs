//! What supplies vCPUs, memory and boot underneath the devices.
//!
//! This release has one engine, [`qemu`]: stock QEMU 7.2 or newer, its `microvm` machine, TCG. [`cmdline`]
//! joins the measured kernel command line with what the engine has to add; [`tsc`] measures the clock rate
//! that is part of it. [`kvm`] only looks whether KVM could carry an engine.

pub mod cmdline;
pub mod kvm;
pub mod qemu;
pub mod tsc;
