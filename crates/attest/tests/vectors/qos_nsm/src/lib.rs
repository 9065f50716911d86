//! Never built: see `../ORIGIN.md`.
