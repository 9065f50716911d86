//! Everything that must fail.

use std::thread;

use anyhow::{Context, Result, ensure};
use enclos_e2e::image::{Builder, change_one_byte};
use enclos_e2e::policy::Pins;
use enclos_e2e::stack::{Enclave, INSTANCE, OTHER_ROLE, ROLE, Stack};
use enclos_e2e::stories::{self, Refusal, Secret};

use crate::backends::Rust;
use crate::page::Page;

/// Tries it all; the first thing that succeeds is an error.
pub(crate) fn all(
    stack: &Stack,
    builder: &Builder<'_>,
    rust: &Rust<'_>,
    page: &mut Page,
) -> Result<()> {
    let parent = stories::parent_decrypts(stack, &rust.secret)?;
    page.refusal(
        "The host itself, with its role's credentials, asks for the plaintext",
        &parent,
    );

    // Two virtual machines fill the two cores; a third follows.
    let (changed, debug) = thread::scope(|scope| {
        let changed = scope.spawn(|| changed_image(stack, builder, rust));
        let debug = debug_mode(stack, rust);
        (
            changed
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            debug,
        )
    });
    let changed = expect_pcr(changed, 0)?;
    page.refusal(
        "An image with one byte of the application changed",
        &changed,
    );
    page.refusal(
        "The same image in debug mode, where a console could read along",
        &expect_pcr(debug, 0)?,
    );
    let role = expect_pcr(other_role(stack, rust), 3)?;
    page.refusal("The same image on a host with another role", &role);

    let replayed = stories::replayed_document(stack, &rust.secret)?;
    page.refusal("A document ten minutes old, everything else right (signed with the installation's own key)", &replayed);
    let foreign = stories::foreign_document(stack, &rust.secret)?;
    page.refusal(
        "A document with all the right values, signed by another root",
        &foreign,
    );
    Ok(())
}

fn changed_image(stack: &Stack, builder: &Builder<'_>, rust: &Rust<'_>) -> Result<Refusal> {
    let image = builder.rust_backend("rust-backend-changed", |program| change_one_byte(program))?;
    ensure!(
        image.measurements.pcr0 != rust.image.measurements.pcr0,
        "PCR0 did not change"
    );
    ensure!(
        image.measurements.pcr1 == rust.image.measurements.pcr1,
        "PCR1 changed"
    );
    ask(stack, rust, &stack.host.run(&image, &[])?)
}

fn debug_mode(stack: &Stack, rust: &Rust<'_>) -> Result<Refusal> {
    ask(
        stack,
        rust,
        &stack
            .host
            .run(&rust.image, &["--debug-mode", "--enclave-name", "debug"])?,
    )
}

fn other_role(stack: &Stack, rust: &Rust<'_>) -> Result<Refusal> {
    let host = stack.second_host(OTHER_ROLE)?;
    let enclave = host.run(&rust.image, &[])?;
    ask(stack, rust, &enclave)
}

/// Asks for a message under a key of this story's own. Its policy names both roles, so that what refuses is what was measured.
fn ask(stack: &Stack, rust: &Rust<'_>, enclave: &Enclave<'_>) -> Result<Refusal> {
    let pins = Pins::new(&rust.image.measurements, ROLE, INSTANCE)?.and_role(OTHER_ROLE);
    let secret = Secret::new(&stack.kms, pins, "not for you")?;
    enclave.until_answering("/health")?;
    stories::enclave_decrypts(&stack.kms, &secret, enclave)
}

fn expect_pcr(refusal: Result<Refusal>, index: u8) -> Result<Refusal> {
    let refusal = refusal.with_context(|| format!("the story that PCR{index} must stop"))?;
    ensure!(
        refusal.is_about_pcr(index),
        "refused, but not by PCR{index}: {refusal:?}"
    );
    Ok(refusal)
}
