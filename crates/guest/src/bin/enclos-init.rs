//! PID 1 of an enclave; see [`enclos_guest::init`].
//!
//! The kernel may hand over with descriptors 0, 1 and 2 closed and no `/dev/null` yet, where Rust's run-time
//! start-up aborts. So this program has C's `main`, and opens its console itself.

#![no_main]
#![expect(unsafe_code, reason = "C's main has a fixed symbol name")]

use std::ffi::{c_char, c_int};

use enclos_guest::{init, log};

/// Status of a wrong call.
const USAGE: c_int = 2;

/// Entry point of the C run-time.
// SAFETY: `main` is called once, by the C run-time, with this signature; no other item has this name.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    if std::process::id() != 1 {
        log::line(
            "enclos-init",
            format_args!("this is process 1 of an enclave; `enclos run-enclave` starts one"),
        );
        return USAGE;
    }
    init::run()
}
