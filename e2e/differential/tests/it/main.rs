//! Differential tests: two hundred generated images, written, measured and described by AWS's code and by ours.
//!
//! | peer | what it is | what has to be equal |
//! |---|---|---|
//! | `aws-nitro-enclaves-image-format` 0.8.1 | AWS's library | files, registers, CRC, signature, certificate |
//! | `eif_build` 0.2.1 | AWS's builder | files, byte for byte |
//! | `nitro-cli` 1.5.2 | AWS's command | the text of `describe-eif`, `pcr`; images signed by one verify in the other |
//!
//! Images are generated from a fixed seed, so a failure names a case that can be looked at again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod case;
mod library;
mod programs;
