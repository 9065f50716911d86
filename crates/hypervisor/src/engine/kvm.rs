//! Whether `/dev/kvm` can carry a guest: a throw-away machine of a few instructions.
//!
//! That the device opens proves nothing. Some hosts, machines within machines among them, create VMs and then emulate
//! their kernel code slowly or incompletely, and no stock Linux boots on them. So a few instructions are run as a kernel would: in long
//! mode, at privilege level 0, with paging on.
//!
//! ```text
//! 0x1000  page tables: the first 2 MiB, mapped to themselves
//! 0x8000  cmpxchg16b of [0x9000], zero, with 0x22:0x11; count down from LOOPS; hlt
//! 0x9000  0x11, 0x22 when all went well
//! ```
//!
//! Sources: Intel SDM volume 3, 4.5 (paging), 10.8.5 (long mode); `Documentation/virt/kvm/api.rst` of Linux.

#![expect(
    unsafe_code,
    reason = "KVM is handed the address of the guest's memory"
)]

use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Turns of the loop: a CPU that runs them itself takes about a millisecond.
const LOOPS: u32 = 1_000_000;

/// Longer than this, and something emulates.
const NATIVE: Duration = Duration::from_millis(100);

/// When the guest is given up.
const LIMIT: Duration = Duration::from_secs(10);

const MEMORY: usize = 2 << 20;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x8000;
const CELL: u32 = 0x9000;

/// What `cmpxchg16b` writes.
const WRITTEN: [u32; 2] = [0x11, 0x22];

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The guest did what it should, in this time.
    Works(Duration),
    /// It did, but this slowly.
    Slow(Duration),
    /// It did something else.
    Wrong(String),
    /// It had not ended after ten seconds.
    Stuck,
    /// No machine could be made.
    Absent(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works(took) => write!(
                f,
                "runs kernel code at full speed: {LOOPS} turns of a loop in {took:.1?}"
            ),
            Self::Slow(took) => write!(
                f,
                "emulates kernel code: {LOOPS} turns of a loop took {took:.1?}, a CPU takes about a millisecond; Linux would not boot in time"
            ),
            Self::Wrong(what) => write!(f, "runs kernel code wrongly: {what}"),
            Self::Stuck => write!(
                f,
                "did not end a guest of a few instructions within {LIMIT:?}"
            ),
            Self::Absent(why) => write!(f, "cannot make a machine: {why}"),
        }
    }
}

/// Runs the guest. It gets a thread of its own, which is left behind if the guest never ends: call this from a program that
/// ends soon.
#[must_use]
pub fn probe() -> Verdict {
    let (sender, receiver) = mpsc::channel();
    let started = thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || sender.send(run()));
    match started {
        Ok(_) => receiver.recv_timeout(LIMIT).unwrap_or(Verdict::Stuck),
        Err(error) => Verdict::Absent(error.to_string()),
    }
}

fn run() -> Verdict {
    match attempt() {
        Ok(verdict) => verdict,
        Err(why) => Verdict::Absent(why),
    }
}

fn attempt() -> Result<Verdict, String> {
    let kvm = Kvm::new().map_err(says("open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(says("create a VM"))?;
    let memory = memory()?;
    let address = memory
        .get_host_address(GuestAddress(0))
        .map_err(says("find the guest's memory"))?;
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: address as u64,
        ..Default::default()
    };
    // SAFETY: the region is `memory`, mapped with that length, and dropped after `vm` and the vCPU below.
    unsafe { vm.set_user_memory_region(region) }.map_err(says("give it memory"))?;
    let mut cpu = vm.create_vcpu(0).map_err(says("create a vCPU"))?;
    let features = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(says("read the CPU's features"))?;
    cpu.set_cpuid2(&features)
        .map_err(says("set the CPU's features"))?;
    long_mode(&cpu)?;
    let began = Instant::now();
    let ended = match cpu.run() {
        Ok(VcpuExit::Hlt) => Ok(began.elapsed()),
        Ok(other) => Err(format!("it stopped with {other:?}")),
        Err(error) => Err(format!("it cannot be run: {error}")),
    };
    let mut cell = [0; 16];
    memory
        .read_slice(&mut cell, GuestAddress(CELL.into()))
        .map_err(says("read the guest's memory"))?;
    Ok(judge(ended, cell))
}

fn judge(ended: Result<Duration, String>, cell: [u8; 16]) -> Verdict {
    let [low, high] = WRITTEN.map(|value| u64::from(value).to_le_bytes());
    match ended {
        Err(what) => Verdict::Wrong(what),
        Ok(_) if cell != [low, high].concat()[..] => {
            Verdict::Wrong("cmpxchg16b wrote something else".into())
        }
        Ok(took) if took > NATIVE => Verdict::Slow(took),
        Ok(took) => Verdict::Works(took),
    }
}

fn says<E: fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("cannot {doing}: {error}")
}

/// Memory with page tables and the program in it.
fn memory() -> Result<GuestMemoryMmap, String> {
    /// Present and writable; in a page directory, 2 MiB large.
    const PRESENT: u64 = 3;
    const LARGE: u64 = 0x80;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(says("map the guest's memory"))?;
    let tables = [
        (TABLES, (TABLES + 0x1000) | PRESENT),
        (TABLES + 0x1000, (TABLES + 0x2000) | PRESENT),
        (TABLES + 0x2000, LARGE | PRESENT),
    ];
    for (at, entry) in tables {
        memory
            .write_slice(&entry.to_le_bytes(), GuestAddress(at))
            .map_err(says("write page tables"))?;
    }
    memory
        .write_slice(&program(), GuestAddress(CODE))
        .map_err(says("write the program"))?;
    Ok(memory)
}

fn program() -> Vec<u8> {
    let [low, high] = WRITTEN.map(u32::to_le_bytes);
    let cell = CELL.to_le_bytes();
    [
        &[0x31, 0xc0, 0x31, 0xd2][..], // xor eax, eax; xor edx, edx
        &[0xbb],                       // mov ebx, low
        &low,
        &[0xb9], // mov ecx, high
        &high,
        &[0xbf], // mov edi, CELL
        &cell,
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0f], // lock cmpxchg16b [rdi]
        &[0xb9],                         // mov ecx, LOOPS
        &LOOPS.to_le_bytes(),
        &[0xff, 0xc9], // dec ecx
        &[0x75, 0xfc], // jnz back to dec
        &[0xf4],       // hlt
    ]
    .concat()
}

/// Puts the CPU where a 64-bit kernel's first instruction finds it.
fn long_mode(cpu: &VcpuFd) -> Result<(), String> {
    let mut special = cpu.get_sregs().map_err(says("read registers"))?;
    let segment = |selector, kind, long| kvm_segment {
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: long,
        db: 1 - long,
        ..Default::default()
    };
    special.cs = segment(8, 11, 1);
    for data in [&mut special.ds, &mut special.es, &mut special.ss] {
        *data = segment(16, 3, 0);
    }
    special.cr0 = 0x8000_0011; // PG, ET, PE
    special.cr3 = TABLES;
    special.cr4 = 0x20; // PAE
    special.efer = 0x500; // LMA, LME
    cpu.set_sregs(&special).map_err(says("set registers"))?;
    let mut registers = cpu.get_regs().map_err(says("read registers"))?;
    (registers.rip, registers.rflags) = (CODE, 2);
    cpu.set_regs(&registers).map_err(says("set registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell() -> [u8; 16] {
        WRITTEN
            .map(|value| u64::from(value).to_le_bytes())
            .concat()
            .try_into()
            .unwrap()
    }

    #[test]
    fn only_the_right_result_in_time_is_a_machine() {
        let quick = Duration::from_millis(12);
        assert_eq!(judge(Ok(quick), cell()), Verdict::Works(quick));
        let slow = Duration::from_secs(3);
        assert_eq!(judge(Ok(slow), cell()), Verdict::Slow(slow));
        assert!(matches!(judge(Ok(quick), [0; 16]), Verdict::Wrong(_)));
        let failed = judge(Err("it stopped with InternalError".into()), cell());
        assert!(failed.to_string().contains("InternalError"), "{failed}");
    }

    #[test]
    fn whatever_this_machine_has_a_verdict_comes() {
        let began = Instant::now();
        let verdict = probe();
        assert!(began.elapsed() < 2 * LIMIT);
        if !std::path::Path::new("/dev/kvm").exists() {
            assert!(matches!(verdict, Verdict::Absent(_)), "{verdict}");
        }
    }
}
