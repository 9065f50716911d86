//! Nothing: the tests in `tests/it` are what this package is for. `cargo xtask test` runs them.
