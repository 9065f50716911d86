//! How much sooner an enclave is up than stock QEMU with the same kernel and the same files.
//!
//! Both sides boot the image's kernel with the Rust example's two ramdisks on one vCPU with 256 MiB. Stock QEMU gets
//! what one would give it: the bzImage and one gzip initrd, whose `/init` prints a line at once. Runs alternate, so
//! that whatever else the machine does meets both. What is compared is the time to init; the enclave's time to the
//! first HTTP 200 is printed beside it.
//!
//! Stock QEMU's boots hang now and then, for two reasons that the engine avoids. `microvm` puts the initrd where SeaBIOS
//! puts the ACPI tables: here the firmware is qboot and the initrd is padded to whole pages, or no comparison would be
//! possible. And on a busy host the kernel may fail to calibrate its clock: such a boot is ended, counted and repeated.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "the result is what this program prints"
)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use enclos_e2e::child::{self, Child};
use enclos_e2e::image::{Builder, Image};
use enclos_e2e::stack::Stack;
use enclos_e2e::wait;
use enclos_e2e::workbench::Workbench;
use enclos_eif::cpio::{Archive, Attributes};
use enclos_eif::{Eif, ramdisk};

/// Ramdisks of the example are a few megabytes; this stops a damaged one.
const MAX_RAMDISK: u64 = 256 << 20;

/// Alignment of the initrd: the room that is left above it then holds the ACPI tables.
const PAGE: usize = 4096;

/// How long a boot of stock QEMU may take before it counts as hung: many times what it takes.
const HANG: Duration = Duration::from_secs(30);

/// Boots of stock QEMU that may hang in a row.
const TRIES: u32 = 5;

/// Time to the first answer of an enclave, against stock QEMU with the same kernel and files.
#[derive(Debug, Parser)]
struct Arguments {
    /// Runs of each side.
    #[arg(default_value_t = 5)]
    runs: u32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    child::end_all_on_signal()?;
    let bench = Workbench::from_env()?;
    let stack = Stack::start(&bench)?;
    let builder = Builder::new(&bench, stack.dir.join("images"), stack.kms.ca())?;
    let image = builder.rust_backend("rust-backend", |_| Ok(()))?;
    let mut plain = Plain::new(&bench, &stack, &image)?;
    let (mut init, mut answer, mut stock) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.runs.max(1) {
        stock.push(plain.boot()?);
        let enclave = stack.host.run(&image, &[])?;
        answer.push(enclave.until_answering("/health")?);
        let heartbeat = enclave
            .describe()?
            .boot
            .heartbeat_ms
            .context("no heartbeat was recorded")?;
        init.push(Duration::from_millis(heartbeat));
    }
    let ratio = median(&mut stock).as_secs_f64() / median(&mut init).as_secs_f64();
    println!(
        "ratio {ratio:.2}: an enclave reaches init that many times sooner than stock QEMU (medians of {})",
        stock.len()
    );
    report("enclave, run-enclave to init", &mut init);
    report("stock QEMU, start to init", &mut stock);
    report("enclave, run-enclave to first HTTP 200", &mut answer);
    if plain.hung > 0 {
        println!("{} boots of stock QEMU hung and were repeated", plain.hung);
    }
    Ok(())
}

fn report(name: &str, times: &mut [Duration]) {
    let middle = median(times).as_secs_f64();
    let [first, .., last] = times else {
        println!("{name:<40} {middle:.2} s");
        return;
    };
    println!(
        "{name:<40} {middle:.2} s ({:.2} to {:.2})",
        first.as_secs_f64(),
        last.as_secs_f64()
    );
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Stock QEMU's side.
struct Plain {
    kernel: PathBuf,
    initrd: PathBuf,
    log: PathBuf,
    hung: u32,
}

impl Plain {
    fn new(bench: &Workbench, stack: &Stack, image: &Image) -> Result<Self> {
        let (kernel, initrd) = (
            stack.dir.join("plain.bzImage"),
            stack.dir.join("plain.cpio"),
        );
        let mut eif = File::open(&image.eif)?;
        let parsed = Eif::parse(&mut eif)?;
        let section = parsed.kernel().context("an image has a kernel")?;
        fs::write(
            &kernel,
            parsed.read_section(&mut eif, section, MAX_RAMDISK)?,
        )?;
        let mut all = Vec::new();
        for section in parsed.ramdisks() {
            let packed = parsed.read_section(&mut eif, section, MAX_RAMDISK)?;
            all.extend(ramdisk::unpack(&packed, MAX_RAMDISK)?);
        }
        all.extend(other_init(&bench.guest.join("e2e-guest"))?);
        File::create(&initrd)?.write_all(&all)?;
        child::read(
            Command::new("gzip").arg("-9").arg(&initrd),
            Duration::from_secs(60),
        )?;
        let initrd = initrd.with_extension("cpio.gz");
        pad(&initrd)?;
        Ok(Self {
            kernel,
            initrd,
            log: stack.dir.join("plain.log"),
            hung: 0,
        })
    }

    /// Time from start to init's first line, of the first boot that does not hang.
    fn boot(&mut self) -> Result<Duration> {
        let mut outcome = self.boot_once();
        for _ in 1..TRIES {
            if outcome.is_ok() {
                break;
            }
            self.hung += 1;
            outcome = self.boot_once();
        }
        outcome
    }

    fn boot_once(&self) -> Result<Duration> {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M", "microvm", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "256",
        ]);
        qemu.arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd);
        qemu.args(["-append", "console=ttyS0 reboot=t panic=-1 quiet"]);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-no-reboot",
            "-serial",
            "stdio",
        ]);
        qemu.args(["-bios", "qboot.rom"]);
        let start = Instant::now();
        let vm = Child::start("qemu", qemu, &self.log)?;
        wait::until("init's first line", HANG, || {
            Ok(vm.log().contains("e2e-guest:").then_some(()))
        })
        .with_context(|| vm.log())?;
        Ok(start.elapsed())
    }
}

/// Fills the file's last page with zeros, which Linux skips.
fn pad(path: &Path) -> Result<()> {
    let len = usize::try_from(fs::metadata(path)?.len())?;
    let file = File::options().write(true).open(path)?;
    Ok(file.set_len(u64::try_from(len.next_multiple_of(PAGE))?)?)
}

/// An archive whose `/init` replaces the one before it: a static program that prints a line and ends.
fn other_init(program: &Path) -> Result<Vec<u8>> {
    let program =
        fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let mut archive = Archive::new(Vec::new(), 0);
    let len = u64::try_from(program.len())?;
    archive.file(
        b"init",
        Attributes::root(0o755),
        len,
        &mut program.as_slice(),
    )?;
    Ok(archive.finish()?)
}
