//! `enclos-vmm`: one enclave. Started by `enclos-hypervisor` alone, with the descriptors that it names:
//! see [`enclos_hypervisor::vmm`].

use std::error::Error;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use enclos_hypervisor::cli::Flags;
use enclos_hypervisor::{log, sys, vmm};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error(format_args!("enclos-vmm: {}", log::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut flags = Flags::parse(std::env::args().skip(1), &["--link", "--image"])?;
    let missing = "enclos-vmm is started by enclos-hypervisor, not by hand";
    let link = flags.number("--link")?.ok_or(missing)?;
    let image = flags.number("--image")?.ok_or(missing)?;
    let (link, image) = (sys::adopt_fd(link)?, sys::adopt_fd(image)?);
    vmm::run(UnixStream::from(link), File::from(image))
}
