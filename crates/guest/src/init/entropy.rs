//! Randomness before anything makes keys: the NSM's, mixed into the kernel's generator.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};

use crate::sys;

/// What the kernel calls the NSM's generator.
const NSM_RNG: &str = "nsm-hwrng";

/// Checks that the kernel draws from the NSM and seeds its generator with 256 bytes of it. The result is
/// what an operator should hear about.
pub(super) fn seed() -> Result<(), String> {
    let current = std::fs::read_to_string("/sys/class/misc/hw_random/rng_current")
        .map_err(|error| format!("the kernel has no hardware random generator: {error}"))?;
    if current.trim() != NSM_RNG {
        return Err(format!(
            "the kernel's random generator is {}, expected {NSM_RNG}",
            current.trim()
        ));
    }
    mix().map_err(|error| format!("cannot seed the kernel from {NSM_RNG}: {error}"))
}

fn mix() -> io::Result<()> {
    let mut bytes = [0; sys::SEED_LEN];
    File::open("/dev/hwrng")?.read_exact(&mut bytes)?;
    let random = OpenOptions::new().write(true).open("/dev/urandom")?;
    sys::seed_kernel(&random, &bytes)
}
