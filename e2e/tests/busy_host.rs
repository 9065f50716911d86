//! Boots beside a busy host: the clock must be right and the boot must never hang.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use enclos_e2e::image::Builder;
use enclos_e2e::stack::Stack;
use enclos_e2e::workbench::Workbench;

#[test]
fn ten_of_ten_boots_beside_six_busy_loops() {
    let bench = Workbench::from_env().unwrap();
    let stack = Stack::start(&bench).unwrap();
    let builder = Builder::new(&bench, stack.dir.join("images"), stack.kms.ca()).unwrap();
    let image = builder.rust_backend("rust-backend", |_| Ok(())).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        let times = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            boot_ten_times(&stack, &image)
        }));
        over.store(true, Ordering::Relaxed);
        let times = times.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        println!("first answers after {times:.1?}");
    });
}

fn boot_ten_times(stack: &Stack, image: &enclos_e2e::image::Image) -> Vec<Duration> {
    let boot = |number: usize| {
        let enclave = stack
            .host
            .run(image, &[])
            .unwrap_or_else(|error| panic!("boot {number}: {error:#}"));
        enclave
            .until_answering("/health")
            .unwrap_or_else(|error| panic!("boot {number}: {error:#}"))
    };
    (1..=10).map(boot).collect()
}
